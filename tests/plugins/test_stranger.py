"""A stranger's distribution, pip-installed into a fresh environment: its stage appears, runs, saves and restores."""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import torch

from kdkit.storage.folder import load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

USE = """
import json, sys
import torch
from kdkit import Session
from kdkit.plugins.manager import manager

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
net[2].weight.data[:, [1, 4]] = 0
x = torch.randn(8, 4)
session = Session(net, eval=(x, torch.arange(8) % 3))
made = session.run("prune dead-neurons --threshold 0.001", label="alive")
session.save(sys.argv[1], "@alive")
plugin = manager().provider("prune.dead-neurons")
print(json.dumps({
    "plugin": [plugin.name, plugin.distribution, plugin.version, plugin.status],
    "parameters": made["parameters"], "layers": made["linear layers"], "notes": made.notes,
    "output": made.model(x).tolist(), "before": net(x).tolist(),
}))
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """What a process in an environment of its own says, and the folder that it saved."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "parent.pth").write_text("\n".join([sysconfig.get_path("purelib"), str(ROOT), str(ROOT / "plugins")]))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, str(ROOT / "tests" / "distributions" / "stranger")], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(python), "-c", USE, str(folder / "saved")], capture_output=True, text=True, timeout=240, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder / "saved"


def test_it_appears_with_its_distribution(used):
    assert used[0]["plugin"] == ["dead-neurons", "kdkit-dead-neurons", "0.3.0", "ok"]


def test_it_runs_and_its_measure_is_measured(used):
    assert used[0]["parameters"] == (4 * 4 + 4) + (4 * 3 + 3)
    assert used[0]["layers"] == 2
    assert used[0]["notes"] == ["2 neurons removed"]
    torch.testing.assert_close(torch.tensor(used[0]["output"]), torch.tensor(used[0]["before"]))


def test_what_it_saved_is_restored_bit_for_bit_where_the_plugin_is_not_installed(used):
    reported, saved = used
    skeleton = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    model, facts = load(saved, skeleton)
    torch.manual_seed(0)
    torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    assert torch.equal(model(torch.randn(8, 4)), torch.tensor(reported["output"]))
    assert facts["recipe"]["steps"][0]["stage"] == "prune.dead-neurons"
    assert facts["recipe"]["distributions"]["kdkit-dead-neurons"] == "0.3.0"

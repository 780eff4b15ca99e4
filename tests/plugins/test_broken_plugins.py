"""Twelve broken plugins, installed together: each is named, none takes the kit down."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1] / "distributions"
LISTED = {
    "import": "No module named 'a_package_that_is_not_there'",
    "exit": "SystemExit: 3",
    "hook": "'kdkit_stagez'",
    "class": "class Plugin",
    "schema": "table",
    "absent": "No module named 'broken_absent'",
}
"""Entry point -> what `%kd plugins` says of it."""

RAISED = {
    "tune finetune": ("kdkit-broken-duplicate", "kdkit"),
    "prune raising-check": ("kdkit-broken-check", "ZeroDivisionError: in check"),
    "prune raising-apply": ("kdkit-broken-apply", "ZeroDivisionError: in apply"),
    "prune wrong-type": ("kdkit-broken-type", "instead of a model"),
    "quantize lying": ("kdkit-broken-traits", "packed weights"),
    "prune output": ("kdkit-broken-output", "(8, 3) to (8, 2)"),
}
"""Line -> what its error says."""

TRY = """
import json, sys, warnings
import torch
from kdkit import KdError, Session
from kdkit.plugins.manager import manager

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
session = Session(net, eval=(torch.randn(8, 4), torch.arange(8) % 3), measures=("quality", "parameters"))
found = {"plugins": {plugin.name: [plugin.status, plugin.reason, plugin.source] for plugin in manager().plugins()}, "errors": {}}
for line in json.loads(sys.argv[1]):
    try:
        session.run(line)
    except KdError as error:
        found["errors"][line] = str(error)
found["versions"] = len(session.versions)
found["untouched"] = all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
found["works"] = session.run("decompose svd --ratio 0.4").name
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a fresh process says with all twelve installed."""
    site = tmp_path_factory.mktemp("site")
    names = sorted(path.stem.removeprefix("broken_") for path in (HERE / "broken").glob("broken_*.py"))
    for name in [*names, "absent"]:
        info = site / f"kdkit_broken_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kdkit-broken-{name}\nVersion: 1.0\n")
        target = "broken_class:Plugin" if name == "class" else f"broken_{name}"
        (info / "entry_points.txt").write_text(f"[kdkit]\n{name} = {target}\n")
    path = [str(HERE / "broken"), str(site)]
    code = f"import sys; sys.path[:0] = {path!r}\n{TRY}"
    done = subprocess.run([sys.executable, "-c", code, json.dumps(list(RAISED))], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_there_are_twelve(found):
    assert len(LISTED) + len(RAISED) == 12


@pytest.mark.parametrize("name", LISTED)
def test_a_plugin_that_can_not_be_loaded_is_listed_as_broken_with_its_reason(found, name):
    status, reason, source = found["plugins"][name]
    assert status == "broken"
    assert LISTED[name] in reason
    assert source.startswith(f"kdkit-broken-{name} 1.0")


@pytest.mark.parametrize("line", RAISED)
def test_a_stage_that_misbehaves_is_refused_by_an_error_that_names_its_distribution(found, line):
    for words in RAISED[line]:
        assert words in found["errors"][line]


def test_the_session_and_the_users_model_are_as_they_were(found):
    assert found["versions"] == 1
    assert found["untouched"]


def test_the_rest_of_the_kit_works_on(found):
    assert found["works"] == "@1"

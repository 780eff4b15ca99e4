"""kdkit in a real JupyterLab, seen through a real browser."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="playwright is not installed (pip install -e '.[test]')")


from tests.browser.axe import check

SETUP = """\
%load_ext kdkit
import torch
from kdkit import notebook
torch.set_num_threads(1)
torch.manual_seed(0)
inputs, labels = torch.randn(64, 8), torch.arange(64) % 4
net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
train = (inputs, labels)
%kd use net --train {train} --eval {train} --measures quality parameters size"""

LONG = "%kd tune finetune --steps 10000000"
"""A training that no machine ends during a test; it is to be interrupted."""

VERSIONS = "list(notebook.session().versions)"


@pytest.fixture(scope="module")
def session(notebook):
    """The notebook with a session in it."""
    notebook.run(SETUP)
    return notebook


@pytest.fixture(scope="module")
def cells(session):
    """A cell of each kind of output, by what it shows."""
    return {
        "table": session.run("%kd"),
        "curves": session.run("%kd tune finetune --steps 40 --validate-every 10 --as tuned"),
        "comparison": session.run("%kd compare @base @tuned"),
        "agreement": session.run("%kd agreement @tuned --teacher @base"),
        "techniques": session.run("%kd list prune"),
        "help": session.run("%kd help tune finetune"),
        "magics": session.run("%kd code @tuned"),
        "error": session.run("%kd prune chanels"),
    }


KINDS = ("table", "curves", "comparison", "agreement", "techniques", "help", "magics", "error")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_wrong_with(kind, theme, cells):
    cells[kind].notebook.theme(theme)
    check(cells[kind].output)

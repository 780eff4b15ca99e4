"""From a cell to a package: what is written, and that it can be installed, tested and used in an environment of its own."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdkit.authoring import Package, source_of
from kdkit.errors import KdError
from kdkit.plugins.manager import manager
from kdkit.testing.catalogue import CHECKS
from tests.fixtures.notebook import Notebook

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

BEGIN = """
import math
from functools import lru_cache
from typing import Literal
import kdkit
import torch
import torch.nn.functional as F
from kdkit import param
from torch import nn
"""

FUNCTION = '''
LEAST = 1e-3
Way = Literal["l1", "l2"]
half = lambda number: number / 2

@lru_cache
def root(number):
    return math.sqrt(number)

def size(weight, way):
    return weight.abs() if way == "l1" else F.normalize(weight, dim=0).abs()

@kdkit.stage("prune.tidy", requires={kdkit.Trait.FLOAT_WEIGHTS}, may_change_nothing=True)
def tidy(model, context, *, share: float = param(0.2, "share of the weights to zero", gt=0, lt=1), way: Way = param("l1", "how a weight is judged")):
    """Zero the weights that are "tidied" away.

    All but the largest.
    """
    for weight in model.parameters():
        if weight.dim() > 1:
            sizes = size(weight, way).flatten()
            least = max(half(LEAST), sizes.kthvalue(max(1, round(root(share * share) * sizes.numel()))).values.item())
            weight.data[size(weight, way) <= least] = 0
'''

CLASS = '''
class Shrinking(kdkit.Stage):
    """Multiply weights."""

    factor: float = param(0.5, "what every weight is multiplied by", gt=0, lt=1)

    def scale(self, weight):
        weight.data.mul_(self.factor)

@kdkit.stage("tune.shrink")
class Shrink(Shrinking):
    """Multiply every weight by a factor."""

    def apply(self, model, context):
        for weight in model.parameters():
            context.check_cancelled()
            self.scale(weight)
'''

USE = """
%load_ext kdkit
import json, torch
from kdkit.plugins.manager import manager
from kdkit.testing import check_plugin
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
data = torch.randn(8, 4), torch.arange(8) % 3
%kd use net --eval {data} --measures parameters
made = %kd prune tidy --share 0.5
small = %kd tune shrink --factor 0.25
checked = {name: repr(check_plugin(name, models=['mlp'])) for name in ("shrink", "first")}
zeros = sum(int((weight == 0).sum()) for weight in made.model.parameters())
from kdkit.plugins.manager import manager
from kdkit.testing.catalogue import CHECKS
told = {plugin.name: [plugin.distribution, plugin.version, plugin.status, plugin.reason, list(plugin.offers)] for plugin in manager().plugins()}
print(json.dumps({"lines": [made.stage.line(), small.stage.line()], "zeros": zeros, "plugins": told, "checked": checked}))
"""


@pytest.fixture
def cells(bare, offered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare.give(BEGIN)
    return bare


def module(name: str) -> str:
    return Path(name, f"{name.replace('-', '_')}.py").read_text()


# what is written


def test_a_function_goes_along_with_the_imports_functions_and_constants_that_it_uses_and_no_others(cells):
    cells.give(FUNCTION)
    cells.give("%kd new-plugin kdkit-tidy --from prune tidy")
    text = module("kdkit-tidy")
    names = [
        node.name if hasattr(node, "name") else ast.unparse(node.targets[0])
        for node in ast.parse(text).body
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
    ]
    assert sorted(names[:-3]) == ["LEAST", "Way", "half", "root", "size"]
    assert names[-3:] == ["tidy", "kdkit_api", "kdkit_stages"]
    assert "import torch.nn.functional as F\n" in text
    assert "from functools import lru_cache\n" in text
    assert "import nn" not in text
    assert "%kd prune tidy" in text.splitlines()[0]


@pytest.mark.parametrize("stated", ["prune tidy", "prune.tidy", "tidy", "@made"])
def test_a_stage_can_be_named_in_any_way_that_people_name_it(cells, stated):
    cells.give(FUNCTION)
    cells.shell.push({"net": __import__("torch").nn.Linear(3, 2)})
    cells.give("%kd use net --measures parameters")
    cells.give("%kd prune tidy --as made")
    cells.give(f"%kd new-plugin kdkit-tidy --from {stated}")
    assert "def tidy(" in module("kdkit-tidy")


def test_a_class_goes_along_with_the_class_it_derives_from(cells):
    cells.give(CLASS)
    cells.give("%kd new-plugin kdkit-shrink --from tune shrink")
    text = module("kdkit-shrink")
    assert text.index("class Shrinking(") < text.index('@kdkit.stage("tune.shrink")\nclass Shrink(')
    assert "return [Shrink]" in text


def test_the_latest_form_of_a_cell_is_taken(cells):
    cells.give(FUNCTION)
    cells.give(FUNCTION.replace("LEAST = 1e-3", "LEAST = 5e-3").replace("All but the largest.", "The later one."))
    cells.give("%kd new-plugin kdkit-tidy --from tidy")
    assert "The later one." in module("kdkit-tidy")
    assert "LEAST = 0.005" in module("kdkit-tidy")


def test_annotations_that_were_kept_as_text_stay_so(cells):
    cells.give('from __future__ import annotations\n@kdkit.stage("prune.late")\ndef late(model, context, *, share: float = 0.1):\n    "Late."\n')
    cells.give("%kd new-plugin kdkit-late --from late")
    assert module("kdkit-late").splitlines()[2] == "from __future__ import annotations"


def test_what_is_imported_from_elsewhere_becomes_a_dependency(cells):
    cells.give("from sklearn.cluster import KMeans")
    cells.give('@kdkit.stage("prune.means")\ndef means(model, context, *, share: float = 0.1):\n    "Means."\n    KMeans(torch.zeros(1))\n')
    cells.give("%kd new-plugin kdkit-means --from means")
    assert tomllib.loads(Path("kdkit-means/pyproject.toml").read_text())["project"]["dependencies"][1:] == ["scikit-learn", "torch"]


@pytest.mark.parametrize(
    ("cell", "message", "hint"),
    [
        (
            "{uses}    net(held)",
            "prune bad uses held, a Linear of this notebook, which a module can't hold",
            "held: str = kdkit.param('held', 'what it is', names='object')",
        ),
        ("{uses}    net(missing)", "prune bad: bad uses missing, which is not defined", "run the cell that defines it"),
        ("def make():\n    {nested}", "prune bad: the source of bad was not found", "at the top level of a cell"),
    ],
)
def test_what_can_not_be_taken_along_is_reported_and_nothing_is_written(cells, cell, message, hint):
    head = '@kdkit.stage("prune.bad")\ndef bad(net, context):\n    "Bad."\n'
    nested = head.replace("\n", "\n    ") + "    return net\nmake()"
    cells.give("held = nn.Linear(2, 2)\n" + cell.format(uses=head, nested=nested) + "\n")
    error = cells.fails("%kd new-plugin kdkit-bad --from bad")
    assert error.message == message
    assert any(hint in each for each in error.hints)
    assert not Path("kdkit-bad").exists()


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("kdkit_Tidy", "'kdkit_Tidy' is not a valid name for a plugin", "did you mean kdkit-tidy?"),
        ("kdkit-", "'kdkit-' is not a valid name for a plugin", "lower-case words"),
        ("kdkit-prune", "the module name kdkit_prune exists already", "kdkit-prune-mine"),
        ("prune", "a plugin prune is already installed", "prune-mine"),
        ("class", "the module name class is a Python keyword", "class-mine"),
        ("", "new-plugin: --name: field required", "for example: %kd new-plugin"),
        ("kdkit-y --from prune channels", "prune channels comes with kdkit", "@kdkit.stage"),
        ("kdkit-y --from prune chanels", "no technique 'chanels' in prune", "did you mean channels?"),
        ("kdkit-y --licence GPL", "new-plugin: --licence 'GPL'", "--licence"),
        ("kdkit-y --license MIT", "new-plugin has no option --license", "did you mean --licence?"),
        ("kdkit-y --folder /proc/nowhere", "can't write /proc/nowhere/kdkit-y", "--folder"),
    ],
)
def test_a_wrong_line_is_one_message_with_what_to_do(cells, line, message, hint):
    error = cells.fails(f"%kd new-plugin {line}")
    assert message in error.message
    assert any(hint in each for each in error.hints), error.hints
    assert not Path("kdkit-y").exists()


def test_nothing_is_overwritten(cells):
    cells.give("%kd new-plugin kdkit-tidy")
    Path("kdkit-tidy/README.md").write_text("mine")
    assert cells.fails("%kd new-plugin kdkit-tidy").message == "kdkit-tidy exists already"
    assert Path("kdkit-tidy/README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("licence", "words"), [("MIT", "Permission is hereby granted"), ("BSD-3-Clause", "Neither the name"), ("Apache-2.0", "Apache License"), ("none", None)]
)
def test_the_licence_is_the_one_that_was_chosen(licence, words):
    files = Package("kdkit-tidy", licence=licence, author='Ada "Countess" Lovelace').files()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["authors"] == [{"name": 'Ada "Countess" Lovelace'}]
    assert project.get("license", "none") == licence
    assert ("LICENSE" in files) == (words is not None)
    if words is not None:
        assert words in files["LICENSE"]
        assert "Ada" in files["LICENSE"]


def test_a_stage_of_a_loose_module_can_be_taken_too(cells, tmp_path, monkeypatch):
    (tmp_path / "loose.py").write_text(BEGIN + FUNCTION)
    monkeypatch.syspath_prepend(tmp_path)
    cells.give("import loose")
    assert "LEAST = 0.001" in source_of(manager().stage("prune.tidy")).parts
    sys.modules.pop("loose")


def test_completion_offers_the_stages_of_the_notebook(cells):
    cells.give(FUNCTION)
    assert cells.complete("%kd new-plugin kdkit-x --from ") == ["prune.tidy"]
    assert "new-plugin" in cells.complete("%kd new")


# what can be done with it


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Three plugins made in a notebook, and the python of an environment in which they are installed."""
    folder = tmp_path_factory.mktemp("packages")
    stages, cells = manager().get_plugin("notebook").stages, Notebook()
    before = dict(stages)
    cells.give(BEGIN + FUNCTION)
    cells.give(CLASS)
    for line in ("kdkit-tidy --from prune tidy --author 'Ada Lovelace'", "kdkit-shrink --from tune shrink --licence Apache-2.0", "kdkit-first"):
        cells.give(f"%kd new-plugin {line} --folder {folder}")
    manager().get_plugin("notebook").stages = before
    manager().forget()
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "parent.pth").write_text("\n".join([sysconfig.get_path("purelib"), str(ROOT), str(ROOT / "plugins")]))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*install, *(str(folder / name) for name in ("kdkit-tidy", "kdkit-shrink", "kdkit-first"))], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, python=python)


def test_it_passes_the_test_that_was_written_with_it(packages):
    done = subprocess.run(
        [packages.python, "-m", "pytest", "-v", "-p", "no:cacheprovider"], capture_output=True, text=True, timeout=280, cwd=packages.folder / "kdkit-tidy"
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("test_conformance[prune tidy-") == len(CHECKS)


def test_it_is_used_from_a_notebook(packages, tmp_path):
    script = tmp_path / "use.ipy"
    script.write_text(USE)
    done = subprocess.run([packages.python, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["lines"] == ["prune tidy --share 0.5", "tune shrink --factor 0.25"]
    assert found["zeros"] == 12 + 9
    assert found["plugins"]["tidy"] == ["kdkit-tidy", "0.1.0", "ok", "", ["prune.tidy"]]
    assert found["plugins"]["shrink"][-1] == ["tune.shrink"]
    assert found["plugins"]["first"][-1] == ["prune.first"]
    assert "notebook" not in found["plugins"]
    assert found["checked"]["shrink"].startswith("shrink: 1 of 1 stages conform")
    assert found["checked"]["first"].startswith("first: 1 of 1 stages conform")


@pytest.mark.parametrize("name", ["kdkit-tidy", "kdkit-shrink", "kdkit-first"])
def test_what_was_written_is_as_ruff_would_have_it(packages, name):
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "E4,E7,E9,F,I", "--ignore", "E731"]
    done = subprocess.run(ruff, capture_output=True, text=True, cwd=packages.folder / name)
    assert done.returncode == 0, done.stdout


def test_an_error_of_a_package_names_the_line_of_its_module(cells, tmp_path, monkeypatch):
    (tmp_path / "kdkit_off.py").write_text('import kdkit\n@kdkit.stage("prune.off")\ndef off(model, context):\n    "Off."\n    return model.nowhere\n')
    monkeypatch.syspath_prepend(tmp_path)
    cells.give("import kdkit_off\nnet = nn.Linear(2, 2)")
    cells.give("%kd use net --measures parameters")
    error = cells.fails("%kd prune off")
    assert error.message.endswith("(kdkit_off.py, line 5: return model.nowhere)")
    assert isinstance(error.__cause__, AttributeError)
    assert not isinstance(error.__cause__, KdError)

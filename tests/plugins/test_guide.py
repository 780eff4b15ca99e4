"""The guide for plugin authors: its examples run, one after another, as they stand there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from kdkit import notebook
from kdkit.plugins import hookspecs
from kdkit.plugins.manager import manager

GUIDE = (Path(__file__).parents[2] / "plugins" / "README.md").read_text()
TESTS = (Path(__file__).parent / "test_hookspecs.py").read_text()
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if hasattr(spec, "kdkit_spec")}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A notebook in a folder of its own, which runs what the guide says; nothing that it offered stays."""
    settings = Config()
    settings.HistoryManager.enabled = False
    shell, before = InteractiveShell(config=settings), dict(manager().get_plugin("notebook").stages)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("guide"))
        yield shell
    notebook.unload(shell)
    manager().get_plugin("notebook").stages = before
    for name in HOOKS:
        manager().unregister_hook(name)
    manager().forget()


@pytest.mark.slow
@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL), ids=lambda text: (re.findall(r"def (\w+)", text) or ["begin"])[0])
def test_the_example_runs(cells, example):
    cells.run_cell(example).raise_error()


@pytest.mark.parametrize("name", HOOKS)
def test_the_hook_is_documented_with_its_exact_signature(name):
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"### `{name}({arguments})`\n" in GUIDE


def test_the_guide_documents_no_hook_that_is_not_there():
    assert set(re.findall(r"### `(kdkit_\w+)\(", GUIDE)) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_the_hook_has_a_docstring_with_an_example(name):
    reported = inspect.getdoc(HOOKS[name]) or ""
    assert f">>> @hookimpl{'(wrapper=True)' if name == 'kdkit_run_stage' else ''}\n... def {name}(" in reported


@pytest.mark.parametrize("name", HOOKS)
def test_the_hook_has_a_test_of_its_own(name):
    assert f"def test_{name}_" in TESTS


@pytest.mark.parametrize("hook", HOOKS)
def test_the_guide_has_a_worked_example_of_it(hook):
    section = GUIDE.partition(f"### `{hook}(")[2].partition("\n##")[0]
    assert f"def {hook}(" in section

"""Loading, unloading, and what IPython itself is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def matchers(notebook):
    return [matcher for matcher in notebook.shell.Completer.custom_matchers if getattr(matcher, "matcher_identifier", "") == "kdkit"]


def configurables(notebook):
    return [item for item in notebook.shell.configurables if type(item).__name__ == "KdMagics"]


@pytest.mark.slow
def test_loading_imports_neither_torch_nor_pydantic_nor_pluggy():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as Shell\n"
        "import sys\n"
        "shell = Shell.instance()\n"
        "before = set(sys.modules)\n"
        "shell.run_line_magic('load_ext', 'kdkit')\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert new <= {'kdkit', 'IPython'}, new\n"
        "assert 'prune' in shell.complete('pr', '%kd pr', 6)[1]\n"
        "shell.run_cell('%kd')\n"
        "assert 'torch' not in sys.modules\n"
        "print('light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "IPYTHONDIR": os.devnull + "x"}, check=False)
    assert done.stdout.endswith("light\n"), done.stdout + done.stderr


def test_unloading_leaves_nothing_behind(bare):
    assert matchers(bare)
    assert configurables(bare)
    bare.shell.run_line_magic("unload_ext", "kdkit")
    assert "kd" not in bare.shell.magics_manager.magics["line"]
    assert "kd" not in bare.shell.magics_manager.magics["cell"]
    assert "KdMagics" not in bare.shell.magics_manager.registry
    assert not matchers(bare)
    assert not configurables(bare)


def test_reloading_leaves_one_of_each_and_the_session(cells):
    session = cells.session
    cells.shell.run_line_magic("reload_ext", "kdkit")
    cells.shell.run_line_magic("reload_ext", "kdkit")
    assert len(matchers(cells)) == 1
    assert len(configurables(cells)) == 1
    assert cells.session is session
    assert "@base *" in repr(cells.give("%kd"))


def test_config_lists_and_sets_the_settings(bare, capsys, monkeypatch):
    monkeypatch.setenv("KDKIT_STABLE", "0")
    bare.give("%config KdMagics")
    assert "KdMagics.stable" in capsys.readouterr().out
    bare.give("%config KdMagics.stable = True")
    assert os.environ["KDKIT_STABLE"] == "1"


def test_the_question_mark_shows_every_verb(bare):
    from kdkit.notebook.verb import verbs

    reported = bare.shell.object_inspect("%kd")["docstring"]
    assert all(f"%kd {word}" in reported or verb.example_line in reported for word, verb in verbs().items())


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["%kd undo;", "%kd undo ;  # back", "%%kd\ntune finetune;\n"])
def test_a_semicolon_silences(cells, cell):
    cells.give("%kd tune finetune --steps 1")
    assert cells.give(cell) is None


@pytest.mark.slow
def test_inside_a_function_its_locals_are_seen(cells):
    cells.give("def step(rate):\n    steps = 1\n    return get_ipython().run_line_magic('kd', 'tune finetune --steps {steps} --learning-rate {rate}')")
    assert cells.give("step(0.25)").stage.learning_rate == 0.25


def test_braces_and_dollars_are_not_expanded_to_text(cells):
    assert cells.give("%kd eval --data {train}")["accuracy"].n == 32
    assert cells.give("%kd eval --data $train")["accuracy"].n == 32


@pytest.mark.slow
def test_an_expression_within_a_word_becomes_its_text(cells, tmp_path):
    cells.give(f"folder = {str(tmp_path)!r}\nfor i in range(2):\n    %kd save {{folder}}/out_{{i:02}}\n    %kd report --path $folder/page_$i.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out_00", "out_01", "page_0.html", "page_1.html"]


def test_a_name_with_an_expression_in_it_is_looked_up(cells):
    cells.give("train_2 = train\nn = 2")
    assert cells.give("%kd eval --data train_{n}")["accuracy"].n == 32
    assert cells.give("%kd eval --data {'train_2'}")["accuracy"].n == 32


@pytest.mark.slow
def test_a_local_is_not_kept_alive_by_the_magic(cells):
    import gc
    import weakref

    cells.give("class Thing: pass\ndef look():\n    thing = Thing()\n    get_ipython().run_line_magic('kd', 'status')\n    return __import__('weakref').ref(thing)")
    left = cells.give("look()")
    gc.collect()
    assert isinstance(left, weakref.ref)
    assert left() is None


FIRST_LINES = """
import sys
from IPython.core.interactiveshell import InteractiveShell
import torch
shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "kdkit")
for line in ("", "undo"):
    try:
        repr(shell.run_line_magic("kd", line))
    except Exception as error:
        print(type(error).__name__)
print(sorted(name for name in sys.modules if name.startswith("kdkit_")))
"""


@pytest.mark.slow
def test_a_line_of_kdkits_own_verbs_loads_no_plugin():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FIRST_LINES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

"""Help anywhere: `--help`, `-h` and `?` behind a line explain it instead of running it."""

from __future__ import annotations

import pytest

from kdkit.notebook.parser import help_topic, parse
from kdkit.notebook.verbs.help import Help


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "topic"),
    [
        ("%kd prune channels?", "%kd prune channels\n"),
        ("%kd prune channels ?", "%kd prune channels\n"),
        ("%kd prune channels --ratio 0.5??", "%kd prune channels\n"),
        ("  %kd prune channels?  ", "%kd prune channels\n"),
        ("x = 1\n%kd undo?", "%kd undo [TIMES]"),
        ("%kd prune channels --ratio 0.5 --help", "%kd prune channels\n"),
        ("%kd prune channels -h", "%kd prune channels\n"),
        ("%kd prune?", "prune channels"),
        ("%kd undo --help", "%kd undo [TIMES]"),
        ("%kd save small/ @base --help", "%kd save PATH [VERSION]"),
        ("%kd help prune channels?", "%kd prune channels\n"),
        ("%kd --help", "%kd VERB"),
        ("%kd -h", "%kd VERB"),
        ("%%kd small --help\nprune channels", "%kd VERB"),
        ("%%kd small\ntune finetune\nprune channels?", "%kd prune channels\n"),
        ("%%kd small\nprune channels --help", "%kd prune channels\n"),
        ("%kd RKD?", "RKD is distill relations"),
        ("%kd ptq --help", "PTQ"),
    ],
)
def test_a_line_that_asks_is_explained_and_not_run(cells, cell, topic):
    history = cells.session.history
    assert topic in repr(cells.give(cell))
    assert cells.session.history is history


def test_python_and_ipython_keep_their_question_marks(cells, capsys):
    cells.give("train?\n")
    cells.give("%kd?")
    cells.give("text = '''\n%kd prune channels?\n'''")
    assert cells.shell.user_ns["text"] == "\n%kd prune channels?\n"
    assert "help" not in cells.shell.user_ns["text"]


def test_unloading_takes_the_question_mark_away(bare):
    before = list(bare.shell.input_transformer_manager.token_transformers)
    bare.shell.run_line_magic("unload_ext", "kdkit")
    assert len(bare.shell.input_transformer_manager.token_transformers) == len(before) - 1


@pytest.mark.parametrize("line", ["tune finetune --layers 'head?'", "save 'what?/x' @base", "compare-with 'tune finetune --help'"])
def test_a_question_mark_in_a_value_is_no_question(line):
    assert help_topic(line) is None


def test_asking_is_the_help_verb():
    assert parse("prune channels --help").target is Help

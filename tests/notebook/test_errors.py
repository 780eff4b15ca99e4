"""Bad input: one message that says what and what to do, and the session as it was."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from kdkit.errors import KdError
from kdkit.notebook import workspace_of
from kdkit.notebook.command import build
from kdkit.notebook.parser import parse


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "message", "hint"),
    [
        ("%kd uze net", "there is no verb or family 'uze'", "did you mean use"),
        ("%kd pruen channels", "there is no verb or family 'pruen'", "prune"),
        ("%kd prune", "prune: which technique?", "prune channels"),
        ("%kd prune --ratio 0.5", "prune: which technique?", "prune channels"),
        ("%kd prune chanels", "no technique 'chanels' in prune", "did you mean channels"),
        ("%kd tune finetune --epoch 1", "tune finetune has no option --epoch", "--epochs"),
        ("%kd tune finetune --epochs many", "tune finetune: --epochs 'many' is not a number", ""),
        ("%kd tune finetune --epochs 0", "tune finetune: --epochs 0: input should be greater than 0", "--epochs: passes over the training data"),
        ("%kd tune finetune --optimizer adan", "tune finetune: --optimizer 'adan'", "--optimizer: "),
        ("%kd tune finetune --on @nope", "no version @nope", "versions: @base"),
        ("%kd tune finetune --seed x", "tune finetune: --seed 'x' is not a whole number", ""),
        ("%kd tune finetune --seed -1", "tune finetune: --seed -1: input should be greater than or equal to 0", ""),
        ("%kd tune finetune --as 5", "'5' can't be a label", ""),
        ("%kd tune finetune --data {nope}", "{nope}: there is no variable 'nope'", ""),
        ("%kd tune finetune --data {trian}", "{trian}: there is no variable 'trian'", "did you mean train"),
        ("%kd tune finetune --data nope", "tune finetune --data nope needs data, and the session has none of that name", ""),
        ("%kd tune finetune --steps {1/0}", "{1/0} raised ZeroDivisionError: division by zero", ""),
        ("%kd tune finetune --steps {'a'}", "tune finetune: --steps 'a'", ""),
        ("%kd tune finetune --steps {", "'{' is not {a Python expression}", ""),
        ("%kd tune finetune 'open", "a quote is not closed", "close the quote"),
        ("%kd use nett", "there is no variable 'nett'", "did you mean net"),
        ("%kd use", "use: --model: field required", "for example: %kd use net"),
        ("%kd use net --trian {train}", "use has no option --trian", "did you mean --train"),
        ("%kd use net --eval {train[0][0, 0]}", "--eval", ""),
        ("%kd keep", "keep: --as: field required", "for example: %kd keep @2 --as slim"),
        ("%kd undo many", "undo: TIMES 'many' is not a whole number", ""),
        ("%kd save", "save: --path: field required", ""),
        ("%kd save a b c", "save: 'c' is not an option", ""),
        ("%kd plugins remove x", "plugins: --action 'remove'", ""),
        ("%kd help prnue", "help: there is no 'prnue'", "did you mean prune"),
        ("%kd list prnue", "there is no family 'prnue'", "did you mean prune"),
        ("%kd drop @base", "@base can't be dropped", ""),
        ("%kd eval @base @base", "eval: '@base' is not an option", ""),
        ("%%kd\nprune chanels\ntune finetune\n", "line 1: no technique 'chanels' in prune", "did you mean channels"),
        ("%%kd\ntune finetune\neval\n", "line 2: eval is not a stage", "run %kd eval in a cell of its own"),
        ("%%kd\ntune finetune --on @base\n", "tune finetune: --on belongs to the whole pipeline", "write it on the %%kd line"),
        ("%%kd name other\ntune finetune\n", "%%kd: 'other' is not an option", ""),
        ("%%kd\n# nothing\n", "there is no stage to run", ""),
        ("%%kd\ntogether:\n    tune finetune\n", "together", ""),
    ],
)
def test_a_wrong_line_is_one_message_with_what_to_do_and_changes_nothing(cells, cell, message, hint):
    history, objects = cells.session.history, cells.session.objects
    reported = cells.fails(cell)
    assert message in reported.message
    assert not hint or any(hint in each for each in reported.hints), reported.hints
    assert cells.session.history is history
    assert cells.session.objects is objects


WORDS = [
    *("prune", "channels", "tune", "finetune", "use", "net", "set", "help", "compare", "undo", "eval", "-o", "--on", "@base", "--as", "--dry-run"),
    *("{net}", "$train", "--epochs", "1", "--teacher={big}", "'", "{", "--", "=", ";", "#", "--no-x"),
]


@pytest.mark.slow
@given(some.one_of(some.text(max_size=30), some.lists(some.one_of(some.sampled_from(WORDS), some.text(max_size=6)), max_size=7).map(" ".join)), some.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_line_is_read_or_refused_with_a_message(cells, line, as_cell):
    workspace = workspace_of(cells.shell)
    workspace.variables = workspace.variables.new_child({name: cells.shell.user_ns[name] for name in ("net", "train", "big")})
    with contextlib.suppress(KdError):
        build(parse("", line) if as_cell else parse(line), workspace)


def shown(cells, cell, capsys):
    capsys.readouterr()
    cells.shell.run_cell(cell)
    return capsys.readouterr().out


@pytest.mark.slow
def test_an_error_is_shown_in_short_and_by_tb_in_full(cells, capsys):
    reported = shown(cells, "%kd tune finetune --steps {1/0}", capsys)
    assert "KdError" in reported
    assert "hint:" in reported
    assert "Traceback" not in reported
    assert "Traceback" in shown(cells, "%tb", capsys)


@pytest.mark.slow
def test_debug_shows_the_cause(cells, capsys):
    reported = shown(cells, "%kd tune finetune --steps {1/0} --debug", capsys)
    assert "Traceback" in reported
    assert "ZeroDivisionError" in reported


@pytest.mark.slow
def test_debug_alone_shows_the_last_error_in_full(cells, capsys):
    shown(cells, "%kd tune finetune --steps {1/0}", capsys)
    assert "ZeroDivisionError" in shown(cells, "%kd --debug", capsys).replace("raised ZeroDivisionError", "")


def test_an_interrupt_passes_and_leaves_the_session_intact(cells, offered):
    import kdkit

    @kdkit.stage("tune.interrupted", may_change_nothing=True)
    def interrupted(model, context, *, now: bool = True):
        """Be interrupted."""
        if now:
            raise KeyboardInterrupt

    history = cells.session.history
    assert isinstance(cells.shell.run_cell("%kd tune interrupted").error_in_exec, KeyboardInterrupt)
    assert cells.session.history is history
    assert cells.give("%kd tune interrupted --no-now").parent == 0


def test_a_fault_of_a_stage_is_one_message_and_names_it(cells, offered):
    import kdkit

    @kdkit.stage("tune.faulty")
    def faulty(model, context):
        """Fail."""
        raise RuntimeError("the wheel came off")

    history = cells.session.history
    reported = cells.fails("%kd tune faulty")
    assert "the wheel came off" in reported.message
    assert isinstance(reported.__cause__, RuntimeError)
    assert cells.session.history is history


@pytest.mark.slow
def test_an_interrupt_is_reported_in_two_lines_and_its_traceback_when_asked(cells, offered, capsys):
    import kdkit

    @kdkit.stage("tune.stopped", may_change_nothing=True)
    def stopped(model, context):
        """Be interrupted."""
        raise KeyboardInterrupt

    reported = shown(cells, "%kd tune stopped", capsys)
    assert "interrupted; the session is unchanged; its head is @base" in reported
    assert "Traceback" not in reported
    assert "Traceback" in shown(cells, "%tb", capsys)


def test_what_can_be_no_variable_is_not_taken_for_one(cells):
    error = cells.fails("%kd use 3")
    assert "'3' is not the name of a variable" in error.message
    assert "{3}" in error.hints[-1]

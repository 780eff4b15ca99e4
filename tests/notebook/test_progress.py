"""Progress: what is said, how often, and that it never stands in the way of comparing notebooks."""

from __future__ import annotations

import types
from unittest.mock import Mock

import pytest

from kdkit.context import Progress
from kdkit.notebook.progress import Bar, Clock, watch


class Time:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_line_tells_stage_step_figures_and_time_left():
    time = Time()
    clock = Clock(time)
    assert clock.tell(Progress("tune finetune", 0, 10, "epoch 1", {"loss": 1.25})) == "tune finetune · epoch 1 · 0 of 10 · loss 1.25"
    time.now = 4.0
    assert clock.tell(Progress("tune finetune", 4, 10, "epoch 1", {"loss": 1.0})) == "tune finetune · epoch 1 · 4 of 10 · loss 1 · 6 s left"


def test_it_speaks_at_most_ten_times_a_second_but_always_at_the_end():
    time = Time()
    clock = Clock(time)
    told = []
    for step in range(1, 101):
        time.now = step / 100
        told.append(clock.tell(Progress("tune finetune", step, 100)))
    assert 5 <= sum(map(bool, told)) <= 12
    assert told[-1]


def test_the_next_stage_begins_anew():
    time = Time()
    clock = Clock(time)
    clock.tell(Progress("a", 5, 10))
    time.now = 100.0
    assert "left" not in clock.tell(Progress("b", 0, 10))
    time.now = 101.0
    assert clock.tell(Progress("b", 1, 10)).endswith("9 s left")


@pytest.mark.parametrize(("quiet", "stable", "tty"), [(True, "0", True), (False, "1", True), (False, "0", False)])
def test_nothing_is_shown_when_quiet_stable_or_without_anyone_to_see(quiet, stable, tty, monkeypatch):
    monkeypatch.setenv("KDKIT_STABLE", stable)
    monkeypatch.setattr("sys.stdout.isatty", lambda: tty, raising=False)
    with watch(types.SimpleNamespace(kernel=None), quiet) as observe:
        assert observe is None


def test_a_terminal_gets_one_line_that_is_wiped(monkeypatch, capsys):
    monkeypatch.setenv("KDKIT_STABLE", "0")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with watch(types.SimpleNamespace(kernel=None)) as observe:
        observe(Progress("tune finetune", 1, 2))
    told = capsys.readouterr().out
    assert "tune finetune · 1 of 2" in told
    assert told.endswith("\r\x1b[2K")
    assert "\n" not in told


def test_the_bar_reads_the_same_whatever_it_shows():
    bar = Bar()
    bar.show(Progress("tune finetune", 1, 4), "tune finetune · 1 of 4")
    assert repr(bar._box) == "kdkit progress"
    assert (bar._bar.value, bar._bar.max) == (1, 4)
    bar.end("done", failed=False)
    assert (repr(bar._box), bar._label.value, bar._bar.bar_style) == ("kdkit progress", "tune finetune · done", "success")
    assert bar._bar.value == bar._bar.max


def test_a_stage_that_stops_is_shown_as_stopped(monkeypatch):
    monkeypatch.setenv("KDKIT_STABLE", "0")
    view = Mock()
    monkeypatch.setattr("kdkit.notebook.progress._view", lambda shell: view)

    def interrupted():
        with watch(None) as observe:
            observe(Progress("tune finetune", 1, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    view.end.assert_called_once_with("stopped", failed=True)

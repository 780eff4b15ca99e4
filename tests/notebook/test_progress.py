"""Progress: what is said, how often, and that it never stands in the way of comparing notebooks."""

from __future__ import annotations

import types
from unittest.mock import Mock

import pytest

from kdkit.notebook.progress import Bar, Clock, watch
from kdkit.stages.context import Progress


class Time:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_line_tells_stage_step_figures_and_time_left():
    time = Time()
    clock = Clock(time)
    assert clock.describe(Progress("tune finetune", 0, 10, "epoch 1", {"loss": 1.25})) == "tune finetune · epoch 1 · 0 of 10 · loss 1.25"
    time.now = 4.0
    assert clock.describe(Progress("tune finetune", 4, 10, "epoch 1", {"loss": 1.0})) == "tune finetune · epoch 1 · 4 of 10 · loss 1 · 6 s left"


def test_it_speaks_at_most_five_times_a_second_but_always_at_the_end():
    time = Time()
    clock = Clock(time)
    reported = []
    for step in range(1, 101):
        time.now = step / 100
        reported.append(clock.describe(Progress("tune finetune", step, 100)))
    assert 4 <= sum(map(bool, reported)) <= 7
    assert reported[-1]


def test_the_next_stage_begins_again():
    time = Time()
    clock = Clock(time)
    clock.describe(Progress("a", 5, 10))
    time.now = 100.0
    assert "left" not in clock.describe(Progress("b", 0, 10))
    time.now = 101.0
    assert clock.describe(Progress("b", 1, 10)).endswith("9 s left")


@pytest.mark.parametrize(("quiet", "stable", "tty"), [(True, "0", True), (False, "1", True), (False, "0", False)])
def test_nothing_is_shown_when_quiet_stable_or_without_anyone_to_see(quiet, stable, tty, monkeypatch, capsys):
    monkeypatch.setenv("KDKIT_STABLE", stable)
    monkeypatch.setattr("sys.stdout.isatty", lambda: tty, raising=False)
    with watch(types.SimpleNamespace(kernel=None), quiet) as observe:
        observe(Progress("b", 0, 10))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_one_line_that_is_wiped(monkeypatch, capsys):
    monkeypatch.setenv("KDKIT_STABLE", "0")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with watch(types.SimpleNamespace(kernel=None)) as observe:
        observe(Progress("tune finetune", 1, 2))
    reported = capsys.readouterr().out
    assert "tune finetune · 1 of 2" in reported
    assert reported.endswith("\r\x1b[2K")
    assert "\n" not in reported


def test_the_bar_reads_the_same_whatever_it_shows():
    bar = Bar()
    bar.show(Progress("tune finetune", 1, 4), "tune finetune · 1 of 4")
    assert repr(bar.box) == "kdkit progress"
    assert (bar._bar.value, bar._bar.max) == (1, 4)
    bar.end("done", failed=False)
    assert (repr(bar.box), bar._label.value, bar._bar.bar_style) == ("kdkit progress", "tune finetune · done", "success")
    assert bar._bar.value == bar._bar.max


def test_the_curves_of_every_term_are_drawn_at_most_once_a_second():
    time = Time()
    bar = Bar(time)
    pictures = set()
    for step in range(1, 41):
        time.now = step / 10
        bar.add(Progress("tune finetune", step, 40, "", {"loss": 1 / step, "label": 2 / step, "learning_rate": 0.1}))
        bar.show(Progress("tune finetune", step, 40), "told")
        pictures.add(bar._chart.value)
    assert 4 <= len(pictures - {""}) <= 5
    assert "label" in bar._chart.value
    assert "learning_rate" not in bar._chart.value


def test_a_picture_that_takes_long_is_drawn_seldom():
    class Slow(Time):
        def __call__(self):
            self.now += 0.05
            return self.now

    bar, pictures = Bar(Slow()), []
    for step in range(1, 151):
        bar.add(Progress("tune finetune", step, 150, "", {"loss": float(step)}))
        bar.show(Progress("tune finetune", step, 150), "told")
        pictures.append(bar._chart.value)
    assert len(set(pictures) - {""}) == 2


def test_every_message_is_on_the_curve_though_few_are_shown(monkeypatch):
    monkeypatch.setenv("KDKIT_STABLE", "0")
    bar = Bar()
    monkeypatch.setattr("kdkit.notebook.progress._view", lambda shell: bar)

    def stopped():
        with watch(None) as observe:
            for step in range(50):
                observe(Progress("tune finetune", step, 50, "", {"loss": float(step)}))
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stopped()
    assert "Over step 0 to 49" in bar._chart.value


def test_another_stage_begins_new_curves_and_none_are_left_at_the_end():
    time = Time()
    bar = Bar(time)
    for stage, steps in (("tune finetune", (1, 2, 3)), ("distill soft", (1, 2))):
        for step in steps:
            time.now += 5
            bar.add(Progress(stage, step, 3, "", {"loss": float(step)}))
            bar.show(Progress(stage, step, 3), "told")
    assert "Over step 1 to 2" in bar._chart.value
    bar.end("done", failed=False)
    assert bar._chart.value == ""


def test_a_stage_without_figures_has_no_curves():
    bar = Bar()
    for step in (1, 2, 3):
        bar.add(Progress("quantize static", step, 3))
        bar.show(Progress("quantize static", step, 3), "told")
    assert bar._chart.value == ""


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

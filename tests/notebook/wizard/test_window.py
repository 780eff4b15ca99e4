"""The wizard as a whole, without a browser: what it shows, what its buttons do, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import time
from typing import ClassVar

import ipywidgets
import pytest

from kdkit import notebook
from kdkit.display.page import Page
from kdkit.notebook.wizard import launch
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.window import Wizard
from kdkit.parameters.settings import param
from kdkit.parameters.tokenizer import Reference
from kdkit.plugins.manager import manager
from kdkit.stages.stage import Stage
from tests.fixtures.wizard import add, press


class Slow(Stage):
    """Wait, a little at a time, and then change a weight."""

    id: ClassVar = "tune.test-slow"
    seconds: float = param(30.0, "how long", gt=0)

    def apply(self, model, context):
        ends, began = time.monotonic() + self.seconds, time.monotonic()
        while time.monotonic() < ends:
            context.progress(time.monotonic() - began, self.seconds, "waiting")
            time.sleep(0.01)
        next(model.parameters()).data.add_(1.0)


def until(true, seconds=30):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.01)


def code(wizard):
    return wizard._code.value


def reported(wizard):
    return wizard._status.value + wizard._problem.value


# a session by hand


@pytest.mark.slow
def test_a_session_begins_with_what_the_notebook_holds(fresh):
    start = fresh.tab("Start")
    assert [label for label, _ in start.model_form.control("model").first.options][:2] == ["net", "big"]
    assert "%kd use {net}" in code(fresh)
    for name in ("train", "eval"):
        start.data_form.control(name).value = Reference("train")
    start.task_form.control("measures").value = ("quality", "size")
    assert "%kd use {net} --train {train} --eval {train} --measures quality size" in code(fresh)
    press(fresh, start.give)
    assert fresh.controller.session is not None
    assert "arrays of (x, y): 32 items, batches of 32, with labels" in start.about_data.value
    assert "classification" in start.about_task.value
    assert "integer labels" in start.about_task.value
    assert "212 parameters" in start.about_model.value
    fresh.open("Layers")
    assert list(fresh.tab("Layers").rows) == ["0", "2"]
    assert "144 parameters" in fresh.tab("Layers").rows["0"].text.value


@pytest.mark.slow
def test_proposed_pipelines_are_cards_and_the_chosen_one_is_built(wizard):
    start = wizard.tab("Start")
    wizard.open("Start")
    press(wizard, start.ask)
    assert "done" in reported(wizard), reported(wizard)
    texts, buttons = zip(*(each.children for each in start.proposed.children), strict=True)
    assert [button.description for button in buttons] == ["Choose smaller", "Choose faster", "Choose least risk"]
    assert all("risk for quality" in text.value and "→" in text.value for text in texts)
    assert len(wizard.controller.session.versions) == 1
    press(wizard, buttons[0])
    assert wizard.current.title == "Build"
    assert wizard.controller.draft.steps
    assert all("fits" in each.text.value for each in wizard.current.cards[: len(wizard.controller.draft.steps)])


@pytest.mark.slow
def test_what_was_recognised_can_be_changed(wizard):
    start = wizard.tab("Start")
    wizard.open("Start")
    start.toggles["data"].value = True
    start.task_form.control("seed").value = 7
    start.data_form.control("calibration").value = Reference("train")
    assert "%kd set --calibration {train} --seed 7" in code(wizard)
    press(wizard, start.give)
    assert wizard.controller.session.settings["seed"] == 7
    assert "calibration" in wizard.controller.session.objects
    assert start.lines == "", "what was given is not given again"


def offers(tab):
    """The techniques that the palette lists."""
    return [stage.id for stage in tab.palette.shown]


def mark(tab, name):
    """What the palette says about a technique."""
    tab.palette.search.value = name
    row = next(row for row in tab.palette._list.children if row.children[0].description == name)
    return row.children[1].value


@pytest.mark.slow
def test_the_palette_lists_a_family_or_what_is_searched_for_with_a_mark_for_each(wizard):
    tab = wizard.tab("Build")
    wizard.open("Build")
    assert tab.palette.box.layout.display is None, "an empty pipeline begins with a technique"
    tab.palette.family.value = "quantize"
    assert offers(tab) == [id for id in manager().stages() if id.startswith("quantize.")]
    tab.palette.search.value = "filter pruning"
    assert offers(tab) == ["prune.channels"], "papers have other names"
    assert "<b>✓</b> fits here" in mark(tab, "prune channels")
    assert "needs through" in mark(tab, "distill assistant")
    tab.palette.search.value = "nothing like it"
    assert "No technique has these words" in tab.palette._found.value
    tab.palette.search.value = "filter pruning"
    press(wizard, tab.palette._list.children[0].children[0])
    assert tab.stage.id == "prune.channels"
    assert (tab.palette.box.layout.display, tab.chosen.layout.display) == ("none", None)
    press(wizard, tab.add)
    assert (tab.palette.box.layout.display, tab.chosen.layout.display) == ("none", "none")
    press(wizard, tab.open)
    assert tab.palette.box.layout.display is None


@pytest.mark.slow
def test_the_forecast_follows_the_slider(wizard):
    tab = wizard.tab("Build")
    wizard.open("Build")
    tab.choose(manager().stage("prune.channels"))
    slider = tab.form.control("ratio").widget.children[1]
    seen = set()
    for position in (0.25, 0.5, 0.75):
        slider.value = position
        assert f"--ratio {position}" in tab.candidate.value or position == 0.5
        seen.add(tab.candidate.value.partition("<b>")[2].partition("parameters")[2][:40])
    assert len(seen) == 3
    assert len(wizard.controller.session.versions) == 1


@pytest.mark.slow
def test_a_pipeline_is_put_together_reordered_changed_and_predicted(wizard, monkeypatch):
    monkeypatch.setattr("kdkit.notebook.wizard.tabs.build.QUICK_S", float("inf"))
    tab = wizard.tab("Build")
    add(wizard, "tune finetune", steps=1)
    add(wizard, "prune channels", ratio=0.25)
    press(wizard, tab.cards[1].earlier)
    assert wizard.controller.draft.steps == ("prune channels --ratio 0.25", "tune finetune --steps 1")
    assert "fits" in tab.cards[0].text.value
    press(wizard, tab.cards[0].edit)
    assert tab.form.control("ratio").value == 0.25
    assert (tab.add.layout.display, tab.change.layout.display) == ("none", None)
    tab.form.control("ratio").value = 0.5
    press(wizard, tab.change)
    assert wizard.controller.draft.steps[0] == "prune channels"
    assert "prune channels" in tab.forecast.value
    assert "parameters" in tab.forecast.value
    tab.running.control("as_").value = "slim"
    assert "%%kd slim\nprune channels\ntune finetune --steps 1" in code(wizard)
    assert "parameters</th><td>212 → <b>" in tab.cards[0].text.value, "before and after are on the card"
    assert "as before" in tab.cards[1].text.value
    press(wizard, tab.cards[0].remove)
    assert wizard.controller.draft.steps == ("tune finetune --steps 1",)
    assert len(wizard.controller.session.versions) == 1, "nothing was run"


@pytest.mark.slow
def test_a_stage_that_is_predicted_by_running_it_waits_for_its_button_and_can_be_stopped(wizard, offered):
    offered(Slow)
    add(wizard, "tune test-slow", seconds=0.05)
    tab = wizard.tab("Build")
    assert "Predict shows" in tab.forecast.value
    press(wizard, tab.predict)
    assert "tune test-slow" in tab.forecast.value
    assert "as before" in tab.cards[0].text.value
    add(wizard, "tune test-slow", seconds=30.0)
    tab.predict.click()
    until(lambda: wizard.controller.busy)
    tab.stop.click()
    wizard.controller.worker.wait(10)
    assert "cancelled" in reported(wizard)
    assert len(wizard.controller.session.versions) == 1


@pytest.mark.slow
def test_an_order_that_cannot_be_is_marked_with_its_remedy_before_it_is_added_and_after(wizard):
    tab = wizard.tab("Build")
    add(wizard, "quantize static")
    assert "✗ channels (step 2) needs float weights" in mark(tab, "prune channels")
    tab.choose(manager().stage("prune.channels"))
    assert "not valid here" in tab.candidate.value
    assert "put prune channels before quantize static" in tab.candidate.value
    press(wizard, tab.add)
    assert "✗" in tab.cards[1].text.value
    assert tab.predict.disabled
    wizard.open("Run")
    assert "step 2" in wizard.tab("Run").summary.value
    wizard.open("Build")
    press(wizard, tab.cards[1].earlier)
    assert "✗" not in tab.cards[0].text.value + tab.cards[1].text.value


@pytest.fixture
def focused(monkeypatch):
    """The names of what was given the focus."""
    found = []
    monkeypatch.setattr(ipywidgets.DOMWidget, "focus", lambda widget: found.append(widget.description))
    return found


@pytest.mark.slow
def test_the_focus_goes_along_with_a_step_and_is_never_left_on_what_is_gone(wizard, focused):
    tab = wizard.tab("Build")
    for stage in ("prune channels", "distill soft", "tune finetune"):
        add(wizard, stage)

    def after(button):
        press(wizard, button)
        return focused.pop()

    assert after(tab.cards[2].earlier) == "Earlier 2"
    assert after(tab.cards[1].earlier) == "Earlier 1"
    assert after(tab.cards[0].earlier) == "Earlier 1"
    assert after(tab.cards[0].later) == "Later 2"
    assert after(tab.cards[2].join) == "Part 2"
    assert after(tab.cards[1].part) == "Edit 2"
    assert after(tab.cards[2].edit) == "epochs"
    assert after(tab.leave) == "Edit 3"
    assert after(tab.cards[2].edit) == "epochs"
    assert after(tab.change) == "Edit 3"
    assert after(tab.cards[2].remove) == "Remove 2"
    assert after(tab.forget) == "search"


@pytest.mark.slow
def test_the_message_of_one_tab_is_gone_in_the_next(wizard):
    wizard.controller.session.run("tune finetune --steps 1")
    wizard.open("Results")
    tab = wizard.tab("Results")
    tab.choice.value = "layers"
    tab.form.control("layers").value = ("nowhere",)
    press(wizard, tab.go)
    assert "Error" in reported(wizard)
    assert "nowhere" not in tab.result.value, "it is said once"
    wizard.open("Export")
    assert "Error" not in reported(wizard)


@pytest.mark.slow
def test_what_cells_and_plugins_bring_or_take_meanwhile_is_offered_when_the_pipeline_is_looked_at(wizard, offered):
    tab = wizard.tab("Build")
    wizard.open("Build")
    tab.palette.family.value = "tune"
    assert "tune.test-slow" not in offers(tab)
    offered(Slow)
    tab.refresh()
    assert "tune.test-slow" in offers(tab)
    assert tab.palette.family.value == "tune"
    tab.choose(manager().stage("tune.test-slow"))
    again = type("Slow", (Slow,), {"__annotations__": {"minutes": float}, "minutes": param(1.0, "another field"), "__module__": __name__, "__doc__": Slow.__doc__})
    offered(again)
    tab.refresh()
    assert tab.form.settings is again, "a cell that is run again brings another class"
    manager().get_plugin("notebook").stages.clear()
    manager().forget()
    tab.refresh()
    assert tab.add.disabled
    assert "not available any more" in tab.about.value
    press(wizard, tab.leave)
    assert offers(tab) == ["tune.finetune"]
    tab.choose(manager().stage("tune.finetune"))
    assert not tab.add.disabled


@pytest.mark.slow
def test_a_form_that_is_wrong_adds_nothing(wizard):
    tab = wizard.tab("Build")
    wizard.open("Build")
    tab.choose(manager().stage("prune.channels"))
    tab.form.control("ratio").value = 3.0
    assert tab.add.disabled
    tab.form.control("ratio").value = 0.5
    assert not tab.add.disabled


@pytest.mark.slow
def test_two_stages_share_a_loop_and_part_again(wizard):
    tab = wizard.tab("Build")
    add(wizard, "distill soft", steps=1)
    add(wizard, "tune finetune", steps=1)
    press(wizard, tab.cards[1].join)
    assert "together:\n    distill soft --steps 1\n    tune finetune --steps 1" in code(wizard)
    press(wizard, tab.cards[0].part)
    assert len(wizard.controller.draft.steps) == 2
    add(wizard, "prune channels")
    press(wizard, tab.cards[2].join)
    assert "prune channels does not train" in reported(wizard)
    assert len(wizard.controller.draft.steps) == 3


@pytest.mark.slow
def test_the_pipeline_runs_with_both_bars_and_ends_with_the_report(wizard):
    add(wizard, "prune channels")
    add(wizard, "distill soft", teacher=Reference("big"), steps=2)
    wizard.open("Run")
    run = wizard.tab("Run")
    press(wizard, run.start)
    assert [version.made_by for version in wizard.controller.session.versions] == ["use Sequential", "prune channels", "distill soft --steps 2 --teacher big"]
    assert run.overall.value == "2 of 2 stages done"
    assert run.whole.value == 1
    assert "distill soft" in run.report.value
    assert "done" in reported(wizard)
    assert (run.start.button_style, run.cancel.button_style) == ("primary", "")
    assert wizard.controller.draft.start == "@base", "run again, it begins where it began"
    press(wizard, run.follow)
    assert wizard.controller.draft == Draft(start="@2")
    assert wizard.current is wizard.tab("Build")


@pytest.mark.slow
def test_the_lines_that_are_shown_do_the_same(wizard, cells):
    add(wizard, "prune channels", ratio=0.25)
    add(wizard, "tune finetune", steps=2)
    wizard.tab("Build").running.control("as_").value = "by_hand"
    wizard.open("Run")
    press(wizard, wizard.tab("Run").start)
    shown = wizard.tab("Run").lines
    cells.give(shown.replace("by_hand", "by_line"))
    by_hand, by_line = (wizard.controller.session[name].model.state_dict() for name in ("@by_hand", "@by_line"))
    assert all(bool((by_hand[name] == by_line[name]).all()) for name in by_hand)


@pytest.mark.slow
def test_checked_layers_are_written_to_an_option_of_a_step(wizard):
    layers = wizard.tab("Layers")
    wizard.open("Layers")
    assert layers.apply.disabled
    add(wizard, "prune channels")
    add(wizard, "quantize weights")
    wizard.open("Layers")
    assert layers.target.options[:2] == ("step 1, prune channels: layers", "step 1, prune channels: skip")
    layers.target.index = 1
    layers.rows["2"].check.value = True
    assert "prune channels --skip 2" in code(wizard)
    press(wizard, layers.apply)
    assert wizard.controller.draft.steps[0] == "prune channels --skip 2"
    press(wizard, layers.none)
    press(wizard, layers.apply)
    assert wizard.controller.draft.steps[0] == "prune channels"
    press(wizard, layers.measure)
    assert "done" in reported(wizard), reported(wizard)
    assert "sensitivity" in layers.rows["0"].text.value


class PerLayer(Stage):
    """Bits, layer by layer."""

    id: ClassVar = "quantize.test-bits"
    bits: dict[str, int] = param({}, "of the weights, by layer", ge=2, le=8, names="layers")

    def apply(self, model, context): ...


@pytest.mark.slow
def test_values_of_layers_are_written_to_an_option_that_holds_one_for_each(wizard, offered):
    offered(PerLayer)
    add(wizard, "quantize test-bits")
    layers = wizard.tab("Layers")
    wizard.open("Layers")
    assert layers.rows["0"].value.layout.display is None
    layers.rows["0"].value.value, layers.rows["2"].value.value = "8", "4"
    press(wizard, layers.apply)
    assert wizard.controller.draft.steps == ("quantize test-bits --bits 0=8 2=4",)
    layers.rows["2"].value.value = "many"
    layers.apply.click()
    assert "is not a whole number" in reported(wizard)


# stopping, going on, failing


@pytest.mark.slow
def test_cancel_stops_within_a_second_leaves_the_session_intact_and_resume_goes_on(wizard, offered):
    offered(Slow)
    add(wizard, "prune channels")
    add(wizard, "tune test-slow")
    run = wizard.tab("Run")
    wizard.open("Run")
    run.start.click()
    until(lambda: "waiting" in run.bar._label.value)
    assert wizard.controller.busy
    assert (run.start.button_style, run.cancel.button_style) == ("", "danger")
    began = time.monotonic()
    run.cancel.click()
    until(lambda: not wizard.controller.busy)
    assert time.monotonic() - began < 1.0
    wizard.controller.worker.wait(10)
    assert "cancelled" in reported(wizard)
    assert [version.made_by for version in wizard.controller.session.versions] == ["use Sequential", "prune channels"]
    assert wizard.controller.session.head.name == "@1"
    assert run.rest == Draft(("tune test-slow",), start="@1")
    run.rest = Draft(("tune test-slow --seconds 0.05",), start="@1")
    press(wizard, run.resume)
    assert wizard.controller.session.head.made_by == "tune test-slow --seconds 0.05"
    assert run.resume.disabled


@pytest.mark.slow
def test_a_pause_holds_the_run_until_it_goes_on_and_a_paused_run_can_be_cancelled(wizard, offered):
    offered(Slow)
    add(wizard, "prune channels")
    add(wizard, "tune test-slow", seconds=1.0)
    run = wizard.tab("Run")
    wizard.open("Run")
    run.start.click()
    until(lambda: "waiting" in run.bar._label.value)
    assert "✓ done" in run.steps._texts[0].value, "results come as they are made"
    assert "@1" in run.steps._texts[0].value
    assert "▶ running" in run.steps._texts[1].value
    run.pause.click()
    time.sleep(0.3)
    held = run.bar._label.value
    time.sleep(1.2)
    assert run.bar._label.value == held
    assert wizard.controller.busy
    assert run.pause.description == "Continue"
    run.pause.click()
    wizard.controller.worker.wait(20)
    assert "done" in reported(wizard)
    assert "✓ done" in run.steps._texts[1].value
    assert "tune test-slow" in run.log.box.value
    run.start.click()
    until(lambda: "waiting" in run.bar._label.value)
    run.pause.click()
    run.cancel.click()
    wizard.controller.worker.wait(5)
    assert not wizard.controller.busy
    assert "cancelled" in reported(wizard)
    assert "✗ stopped" in run.steps._texts[1].value


@pytest.mark.slow
def test_a_wizard_that_is_closed_during_a_pause_leaves_no_thread(cells, offered):
    offered(Slow)
    made = Wizard(notebook.workspace_of(cells.shell))
    add(made, "tune test-slow")
    made.open("Run")
    made.tab("Run").start.click()
    until(lambda: "waiting" in made.tab("Run").bar._label.value)
    made.tab("Run").pause.click()
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 3
    assert not made.controller.busy


@pytest.mark.slow
def test_a_training_that_left_a_checkpoint_goes_on_from_it(wizard, tmp_path):
    add(wizard, "tune finetune", epochs=100000.0, batch_size=8, checkpoint=str(tmp_path / "kept"))
    run = wizard.tab("Run")
    wizard.open("Run")
    run.start.click()
    until(lambda: (tmp_path / "kept" / "training.json").exists())
    run.cancel.click()
    wizard.controller.worker.wait(30)
    assert "the same line with --resume continues" in reported(wizard)
    assert run.rest.steps[0].endswith("--resume")
    assert "--resume" in run.report.value


@pytest.mark.slow
def test_a_second_run_while_one_runs_is_refused_and_the_kernel_stays_usable(wizard, offered, cells):
    offered(Slow)
    add(wizard, "tune test-slow")
    run = wizard.tab("Run")
    wizard.open("Run")
    run.start.click()
    until(lambda: "waiting" in run.bar._label.value)
    assert "a stage is running in this session" in cells.fails("%kd prune channels").message
    run.start.click()
    assert "another action is running: running the pipeline" in reported(wizard)
    assert cells.give("1 + 1") == 2
    assert len(cells.session.versions) == 1
    run.cancel.click()
    wizard.controller.worker.wait(10)


def buttons(widget):
    """All buttons in a widget, but the two that have nothing to go on from."""
    if isinstance(widget, ipywidgets.Button):
        return [] if widget.description in ("Resume", "Continue from the result") else [widget]
    return [button for child in getattr(widget, "children", ()) for button in buttons(child)]


@pytest.mark.slow
def test_no_button_is_disabled_while_something_runs_since_the_one_that_was_pressed_would_lose_the_focus(wizard, offered):
    offered(Slow)
    add(wizard, "tune test-slow")
    for tab in wizard.tabs:
        wizard.open(tab.title)
    before = [button.disabled for button in buttons(wizard.box)]
    wizard.tab("Run").start.click()
    until(lambda: "waiting" in wizard.tab("Run").bar._label.value)
    assert [button.disabled for button in buttons(wizard.box)] == before
    wizard.tab("Run").cancel.click()
    wizard.controller.worker.wait(10)
    wizard.tab("Run").cancel.click()
    assert "nothing is running" in reported(wizard)


@pytest.mark.slow
def test_a_failure_is_reported_with_its_hints_and_what_was_done_is_kept(wizard):
    add(wizard, "prune channels")
    add(wizard, "tune finetune", learning_rate=1e30, steps=3)
    run = wizard.tab("Run")
    wizard.open("Run")
    press(wizard, run.start)
    assert "failed" in reported(wizard)
    assert "→" in reported(wizard)
    assert wizard.controller.session.head.made_by == "prune channels"
    assert not run.resume.disabled


# what happens beside it


@pytest.mark.slow
def test_cancel_stops_what_runs_also_where_the_notebook_works_on_another_session_by_now(wizard, cells, offered):
    offered(Slow)
    add(wizard, "tune test-slow")
    run, session = wizard.tab("Run"), wizard.controller.session
    wizard.open("Run")
    run.start.click()
    until(lambda: "waiting" in run.bar._label.value)
    cells.give("%kd use big --train {train};")
    run.cancel.click()
    wizard.controller.worker.wait(10)
    assert not wizard.controller.busy
    assert "cancelled" in reported(wizard)
    assert len(session.versions) == 1
    assert run.resume.disabled, "what is left to do belongs to the other session"
    assert run.follow.disabled


@pytest.mark.slow
def test_a_cancel_before_the_run_has_begun_is_not_forgotten(wizard, offered, monkeypatch):
    offered(Slow)
    add(wizard, "tune test-slow", seconds=1.0)
    session, run = wizard.controller.session, wizard.controller.session.run

    def cancelled_first(*given, **named):
        wizard.controller.cancel()
        return run(*given, **named)

    monkeypatch.setattr(session, "run", cancelled_first)
    wizard.open("Run")
    press(wizard, wizard.tab("Run").start)
    assert "cancelled" in reported(wizard)
    assert len(session.versions) == 1


def fault(*given):
    raise ValueError("a fault of ours")


@pytest.mark.slow
def test_what_goes_wrong_in_a_button_or_in_showing_its_result_is_reported(wizard, monkeypatch):
    add(wizard, "tune finetune", steps=1)
    wizard.open("Run")
    run = wizard.tab("Run")
    monkeypatch.setattr(run, "_end", fault)
    press(wizard, run.start)
    assert "done" in reported(wizard)
    assert "ValueError: a fault of ours" in reported(wizard)
    monkeypatch.setattr(run, "_begin", fault)
    wizard.controller.say("")
    press(wizard, run.start)
    assert "ValueError: a fault of ours" in reported(wizard)


@pytest.mark.slow
def test_a_button_waits_until_what_is_done_is_shown(wizard, monkeypatch):
    add(wizard, "tune finetune", steps=1)
    wizard.open("Run")
    run, order, end = wizard.tab("Run"), [], wizard.tab("Run")._end

    def slowly(*given):
        order.append("shown")
        time.sleep(0.3)
        end(*given)
        order.append("all is shown")

    monkeypatch.setattr(run, "_end", slowly)
    beside = run.button("Beside", "", lambda: order.append("pressed"))
    run.start.click()
    until(lambda: order)
    beside.click()
    wizard.controller.worker.wait(10)
    assert order == ["shown", "all is shown", "pressed"]


# pictures, and what is taken along


@pytest.mark.slow
@pytest.mark.parametrize("picture", ["compare", "pareto", "layers", "weights", "agreement", "confusion", "sensitivity"])
def test_every_picture_is_drawn_by_its_verb(wizard, picture):
    wizard.controller.session.run("tune finetune --steps 1")
    tab = wizard.tab("Results")
    wizard.open("Results")
    tab.choice.value = picture
    press(wizard, tab.go)
    assert f"%kd {picture}" in code(wizard)
    assert "done" in reported(wizard), reported(wizard)
    assert "<table" in tab.result.value or "<svg" in tab.result.value


@pytest.mark.slow
def test_the_frontier_is_drawn_without_being_asked_for_and_follows_the_form(wizard):
    wizard.controller.session.run("tune finetune --steps 1")
    tab = wizard.tab("Results")
    wizard.open("Results")
    assert "against size" in tab.result.value
    assert "@1" in tab.table.value
    tab.form.control("cost").value = "parameters"
    assert "against parameters" in tab.result.value
    assert tab.version.options == ("@base", "@1")
    assert "tune finetune" in tab.about_version.value
    tab.version.value = "@base"
    assert "use Sequential" in tab.about_version.value
    press(wizard, tab.ship)
    assert wizard.current.title == "Export"
    assert wizard.current.lines.startswith("%kd export")
    assert "--version @base" in wizard.current.lines
    wizard.open("Results")
    press(wizard, tab.begin)
    assert wizard.controller.draft == Draft(start="@base")
    wizard.open("Results")
    tab.form.control("cost").value = "parametres"
    assert "did you mean parameters" in tab.result.value


@pytest.mark.slow
def test_a_version_is_saved_exported_reported_and_made_code_of(wizard, tmp_path):
    tab = wizard.tab("Export")
    wizard.open("Export")
    for word, path in (("save", "saved"), ("export", "net.onnx"), ("report", "told.html")):
        tab.choice.value = word
        tab.form.control("path").value = str(tmp_path / path)
        press(wizard, tab.go)
        assert "done" in reported(wizard), reported(wizard)
        assert (tmp_path / path).exists()
    tab.choice.value = "code"
    press(wizard, tab.go)
    assert "notebook:insert-cell-below" in tab.result.value
    assert not wizard.controller.workspace.shell.payload_manager.read_payload(), "no cell asked for a cell below it"


# opening and closing


@pytest.mark.slow
def test_a_wizard_is_opened_on_a_form_a_line_a_cell_or_a_version(wizard):
    launch.begin(wizard, stage="prune.channels")
    assert wizard.tab("Build").stage.id == "prune.channels"
    launch.begin(wizard, stage="quantize")
    assert wizard.tab("Build").stage.id == "quantize.dynamic"
    launch.begin(wizard, line="%kd prune channels --ratio 0.3 --on @base --as slim")
    assert wizard.controller.draft == Draft(("prune channels --ratio 0.3",), "@base", "slim")
    assert wizard.tab("Build").form.control("ratio").value == 0.3
    wizard.controller.session.run("prune channels --ratio 0.5", label="slim")
    wizard.controller.session.run("tune finetune --steps 1", label="tuned")
    launch.begin(wizard, line="@tuned")
    assert wizard.controller.draft == Draft(("prune channels", "tune finetune --steps 1"), "@base"), "on what they were run on, not once more on what they made"


@pytest.mark.slow
@pytest.mark.parametrize("words", ["nosuch", "prune nosuch", "--from @nosuch", '--from "prune chanels"'])
def test_who_asks_for_what_is_not_there_keeps_the_wizard_that_is_open(cells, monkeypatch, words):
    monkeypatch.setattr(cells.shell, "kernel", object(), raising=False)
    view = cells.give("%kd wizard;") or launch._open[cells.shell]
    opened = count()
    assert "nosuch" in (stated := cells.fails(f"%kd wizard {words}").message) or "chanels" in stated
    assert launch._open[cells.shell] is view
    assert view.wizard.box.comm is not None
    assert count() == opened


@pytest.mark.slow
def test_a_version_that_is_dropped_while_the_pipeline_begins_with_it_is_reported(wizard, cells):
    cells.give("%kd tune finetune --steps 1 --as slim;")
    cells.give("%kd tune finetune --steps 1;")
    wizard.controller.redraft(Draft(("tune finetune --steps 1",), start="@slim"))
    wizard.open("Start")
    cells.give("%kd drop @slim;")
    wizard.refresh()
    assert "@slim was dropped" in wizard.tab("Start").about_model.value
    wizard.controller.redraft(Draft(start="@gone"))
    assert "no version @gone" in wizard.tab("Start").about_model.value
    assert repr(wizard) == "kdkit wizard: 0 steps on @gone"


def test_the_model_is_shown_as_it_is_named_and_what_its_data_tells_once_it_is_given(bare, cells):
    cells.give("%kd use net --fresh;")
    wizard = Wizard(notebook.workspace_of(cells.shell))
    start, layers = wizard.tab("Start"), wizard.tab("Layers")
    wizard.open("Layers")
    assert "MACs" not in layers.rows["0"].text.value
    cells.give("%kd set --eval {train};")
    cells.give("%kd keep @base --as first;")
    wizard.refresh()
    assert "128 MACs" in layers.rows["0"].text.value, "with data it has MACs"
    wizard.open("Start")
    assert "@first" in start.about_model.value
    wizard.close()


def test_without_a_kernel_the_wizard_is_words(cells):
    page = cells.give("%kd wizard")
    assert isinstance(page, Page)
    assert "No widgets are available here" in repr(page)
    assert "%kd FAMILY TECHNIQUE --dry-run" in repr(page)
    assert "prune channels" in repr(page)


def test_without_a_kernel_what_is_asked_for_is_reported_in_words_too(cells):
    assert "--ratio" in repr(cells.give("%kd wizard prune channels"))
    assert "prune channels" in (reported := repr(cells.give("%kd wizard prune")))
    assert "distill soft" not in reported.partition("technique")[2]
    reported = repr(cells.give('%kd wizard --from "prune channels --ratio 0.3 --as slim"'))
    assert "%kd prune channels --ratio 0.3 --dry-run --as slim\n\n%kd prune channels --ratio 0.3 --as slim" in reported
    assert "no family 'nosuch'" in cells.fails("%kd wizard nosuch").message


def count():
    gc.collect()
    return len(ipywidgets.widgets.widget._instances)


@pytest.mark.slow
def test_closing_leaves_no_widget_thread_or_observer_behind(cells, offered):
    offered(Slow)
    workspace = notebook.workspace_of(cells.shell)
    before, threads = count(), threading.active_count()
    made = Wizard(workspace)
    for tab in made.tabs:
        made.open(tab.title)
    add(made, "prune channels")
    add(made, "tune test-slow")
    made.tab("Build").cards[1].remove.click()
    add(made, "tune test-slow")
    made.open("Results")
    for word in made.tab("Results").choice.options:
        made.tab("Results").choice.value = word
    made.open("Run")
    made.tab("Run").start.click()
    until(lambda: "waiting" in made.tab("Run").bar._label.value)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 2
    assert threading.active_count() == threads
    assert count() == before
    assert len(cells.session.versions) == 2


@pytest.mark.slow
def test_opening_another_closes_the_one_that_was_open_and_so_does_unloading(cells, monkeypatch):
    workspace, shown = notebook.workspace_of(cells.shell), []
    monkeypatch.setattr(cells.shell, "kernel", object(), raising=False)
    monkeypatch.setattr("IPython.display.display", lambda *given, **named: shown.append(given))
    before = count()
    first = launch.open_wizard(workspace)
    first._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0][0]
    opened = count()
    launch.open_wizard(workspace)
    assert first.wizard.box.comm is None
    assert count() == opened
    cells.shell.run_line_magic("unload_ext", "kdkit")
    assert count() == before


def test_a_wizard_that_is_opened_on_a_form_builds_that_tab_alone(cells, monkeypatch):
    workspace = notebook.workspace_of(cells.shell)
    monkeypatch.setattr(cells.shell, "kernel", object(), raising=False)
    wizard = launch.open_wizard(workspace, "distill.soft").wizard
    assert [tab.title for tab in wizard.tabs if wizard.is_built(tab.title)] == ["Build"]
    wizard.open("Start")
    assert not wizard.is_built("Layers")
    launch.close(cells.shell)


@pytest.mark.slow
def test_opening_another_while_one_works_stops_that_and_says_so(cells, monkeypatch, offered):
    offered(Slow)
    monkeypatch.setattr(cells.shell, "kernel", object(), raising=False)
    first = launch.open_wizard(notebook.workspace_of(cells.shell), line="tune test-slow")
    first.open("Run")
    first.press("Run", wait=False)
    until(lambda: "waiting" in first.wizard.tab("Run").bar._label.value)
    second = launch.open_wizard(notebook.workspace_of(cells.shell))
    assert second.message == "running the pipeline was stopped, as the wizard was opened again; the session is unchanged"
    assert second.wizard.controller.draft.steps == ("tune test-slow",)
    assert len(cells.session.versions) == 1


@pytest.mark.slow
def test_its_text_is_short_and_stable(wizard):
    add(wizard, "prune channels")
    assert repr(wizard) == "kdkit wizard: 1 step on @base"

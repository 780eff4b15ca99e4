"""The wizard as a whole, without a browser: what it shows, what its buttons do, and that it leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import time
from typing import ClassVar

import ipywidgets
import pytest

from kdkit import notebook
from kdkit.contract import Stage, param
from kdkit.lines import Reference
from kdkit.notebook.page import Page
from kdkit.notebook.wizard import opening
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.window import Wizard
from kdkit.plugins import manager
from tests.notebook.wizard.conftest import add, press


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


def told(wizard):
    return wizard._status.value + wizard._problem.value


# a session by hand


def test_a_session_begins_with_what_the_notebook_holds(fresh):
    model, data = fresh.pane("Model"), fresh.pane("Data and task")
    assert [label for label, _ in model.form.control("model").first.options][:2] == ["net", "big"]
    fresh.open("Data and task")
    assert "%kd use {net}" in code(fresh)
    for name in ("train", "eval"):
        data.form.control(name).value = Reference("train")
    data.form.control("measures").value = ("quality", "size")
    assert "%kd use {net} --train {train} --eval {train} --measures quality size" in code(fresh)
    press(fresh, data.give)
    assert fresh.session is not None
    assert "arrays of (x, y): 32 items" in data.about.value
    assert "classification" in data.about.value
    assert "integer labels" in data.about.value
    fresh.open("Model")
    assert "Linear" in model.layers.value


def test_what_was_recognised_can_be_changed(wizard):
    data = wizard.pane("Data and task")
    wizard.open("Data and task")
    data.form.control("seed").value = 7
    data.form.control("calibration").value = Reference("train")
    assert "%kd set --calibration {train} --seed 7" in code(wizard)
    press(wizard, data.give)
    assert wizard.session.settings["seed"] == 7
    assert "calibration" in wizard.session.objects
    assert data.lines == "", "what was given is not given again"


def test_a_pipeline_is_put_together_reordered_changed_and_foretold(wizard, monkeypatch):
    monkeypatch.setattr("kdkit.notebook.wizard.panes.pipeline.QUICK_S", float("inf"))
    pane = wizard.pane("Pipeline")
    add(wizard, "tune finetune", steps=1)
    add(wizard, "prune channels", ratio=0.25)
    press(wizard, pane.rows[1].up)
    assert wizard.draft.steps == ("prune channels --ratio 0.25", "tune finetune --steps 1")
    assert "fits" in pane.rows[0].text.value
    press(wizard, pane.rows[0].edit)
    assert pane.form.control("ratio").value == 0.25
    assert pane.add.layout.display != "none"
    pane.form.control("ratio").value = 0.5
    press(wizard, pane.change)
    assert wizard.draft.steps[0] == "prune channels"
    assert "prune channels" in pane.forecast.value
    assert "parameters" in pane.forecast.value
    pane.running.control("as_").value = "slim"
    assert "%%kd slim\nprune channels\ntune finetune --steps 1" in code(wizard)
    press(wizard, pane.rows[0].remove)
    assert wizard.draft.steps == ("tune finetune --steps 1",)
    assert len(wizard.session.versions) == 1, "nothing was run"


def test_a_stage_that_is_foretold_by_doing_it_waits_for_its_button_and_can_be_stopped(wizard, offered):
    offered(Slow)
    add(wizard, "tune test-slow", seconds=0.05)
    pane = wizard.pane("Pipeline")
    assert "Predict foretells" in pane.forecast.value
    press(wizard, pane.predict)
    assert "tune test-slow" in pane.forecast.value
    add(wizard, "tune test-slow")
    pane.predict.click()
    until(lambda: wizard.busy)
    pane.stop.click()
    wizard.worker.wait(10)
    assert "cancelled" in told(wizard)
    assert len(wizard.session.versions) == 1


def test_an_order_that_cannot_be_is_marked_with_its_remedy_before_it_is_added_and_after(wizard):
    pane = wizard.pane("Pipeline")
    add(wizard, "quantize static")
    pane.family.value, pane.technique.value = "prune", "channels"
    assert "can't stand here" in pane.candidate.value
    assert "put prune channels before quantize static" in pane.candidate.value
    press(wizard, pane.add)
    assert "✗" in pane.rows[1].text.value
    assert pane.predict.disabled
    wizard.open("Run")
    assert "step 2" in wizard.pane("Run").judged.value
    wizard.open("Pipeline")
    press(wizard, pane.rows[1].up)
    assert "✗" not in pane.rows[0].text.value + pane.rows[1].text.value


@pytest.fixture
def focused(monkeypatch):
    """The names of what was given the focus."""
    found = []
    monkeypatch.setattr(ipywidgets.DOMWidget, "focus", lambda widget: found.append(widget.description))
    return found


def test_the_focus_goes_along_with_a_step_and_is_never_left_on_what_is_gone(wizard, focused):
    pane = wizard.pane("Pipeline")
    for stage in ("prune channels", "distill soft", "tune finetune"):
        add(wizard, stage)

    def after(button):
        press(wizard, button)
        return focused.pop()

    assert after(pane.rows[2].up) == "Up 2"
    assert after(pane.rows[1].up) == "Up 1"
    assert after(pane.rows[0].up) == "Up 1"
    assert after(pane.rows[0].down) == "Down 2"
    assert after(pane.rows[2].join) == "Part 2"
    assert after(pane.rows[1].part) == "Edit 2"
    assert after(pane.rows[2].edit) == "technique"
    assert after(pane.leave) == "Edit 3"
    assert after(pane.rows[2].edit) == "technique"
    assert after(pane.change) == "Edit 3"
    assert after(pane.rows[2].remove) == "Remove 2"
    assert after(pane.forget) == "family"


def test_what_was_said_of_one_tab_is_gone_in_the_next(wizard):
    wizard.session.run("tune finetune --steps 1")
    wizard.open("Compare")
    pane = wizard.pane("Compare")
    pane.choice.value = "layers"
    pane.form.control("layers").value = ("nowhere",)
    press(wizard, pane.go)
    assert "Error" in told(wizard)
    assert "nowhere" not in pane.result.value, "it is said once"
    wizard.open("Export")
    assert "Error" not in told(wizard)


def test_what_cells_and_plugins_bring_or_take_meanwhile_is_offered_when_the_pipeline_is_looked_at(wizard, offered):
    pane = wizard.pane("Pipeline")
    wizard.open("Pipeline")
    pane.family.value = "tune"
    assert "test-slow" not in pane.technique.options
    offered(Slow)
    pane.refresh()
    assert pane.family.value == "tune"
    pane.technique.value = "test-slow"
    again = type("Slow", (Slow,), {"__annotations__": {"minutes": float}, "minutes": param(1.0, "another field"), "__module__": __name__, "__doc__": Slow.__doc__})
    offered(again)
    pane.refresh()
    assert pane.form.settings is again, "a cell that is run again brings another class"
    manager().get_plugin("notebook").stages.clear()
    manager().forget()
    pane.technique.value = "finetune"
    pane.technique.value = "test-slow"
    assert pane.add.disabled
    assert "not there any more" in pane.about.value
    pane.refresh()
    assert pane.technique.options == ("finetune",)
    assert not pane.add.disabled


def test_a_form_that_is_wrong_adds_nothing(wizard):
    pane = wizard.pane("Pipeline")
    wizard.open("Pipeline")
    pane.family.value, pane.technique.value = "prune", "channels"
    pane.form.control("ratio").value = 3.0
    assert pane.add.disabled
    pane.form.control("ratio").value = 0.5
    assert not pane.add.disabled


def test_two_stages_share_a_loop_and_part_again(wizard):
    pane = wizard.pane("Pipeline")
    add(wizard, "distill soft", steps=1)
    add(wizard, "tune finetune", steps=1)
    press(wizard, pane.rows[1].join)
    assert "together:\n    distill soft --steps 1\n    tune finetune --steps 1" in code(wizard)
    press(wizard, pane.rows[0].part)
    assert len(wizard.draft.steps) == 2
    add(wizard, "prune channels")
    press(wizard, pane.rows[2].join)
    assert "prune channels does not train" in told(wizard)
    assert len(wizard.draft.steps) == 3


def test_the_pipeline_runs_with_both_bars_and_ends_with_the_report(wizard):
    add(wizard, "prune channels")
    add(wizard, "distill soft", teacher=Reference("big"), steps=2)
    wizard.open("Run")
    run = wizard.pane("Run")
    press(wizard, run.start)
    assert [version.made_by for version in wizard.session.versions] == ["use Sequential", "prune channels", "distill soft --steps 2 --teacher big"]
    assert run.overall.value == "2 of 2 stages done"
    assert run.whole.value == 1
    assert "distill soft" in run.report.value
    assert "done" in told(wizard)
    assert (run.start.button_style, run.cancel.button_style) == ("primary", "")
    assert wizard.draft.start == "@base", "run again, it begins where it began"
    press(wizard, run.follow)
    assert wizard.draft == Draft(start="@2")
    assert wizard.current is wizard.pane("Pipeline")


def test_the_lines_that_are_shown_do_the_same(wizard, cells):
    add(wizard, "prune channels", ratio=0.25)
    add(wizard, "tune finetune", steps=2)
    wizard.pane("Pipeline").running.control("as_").value = "by_hand"
    wizard.open("Run")
    press(wizard, wizard.pane("Run").start)
    shown = wizard.pane("Run").lines
    cells.give(shown.replace("by_hand", "by_line"))
    by_hand, by_line = (wizard.session[name].model.state_dict() for name in ("@by_hand", "@by_line"))
    assert all(bool((by_hand[name] == by_line[name]).all()) for name in by_hand)


# stopping, going on, failing


def test_cancel_stops_within_a_second_leaves_the_session_whole_and_resume_goes_on(wizard, offered):
    offered(Slow)
    add(wizard, "prune channels")
    add(wizard, "tune test-slow")
    run = wizard.pane("Run")
    wizard.open("Run")
    run.start.click()
    until(lambda: "waiting" in run.bar._label.value)
    assert wizard.busy
    assert (run.start.button_style, run.cancel.button_style) == ("", "danger")
    began = time.monotonic()
    run.cancel.click()
    until(lambda: not wizard.busy)
    assert time.monotonic() - began < 1.0
    wizard.worker.wait(10)
    assert "cancelled" in told(wizard)
    assert [version.made_by for version in wizard.session.versions] == ["use Sequential", "prune channels"]
    assert wizard.session.head.name == "@1"
    assert run.rest == Draft(("tune test-slow",), start="@1")
    run.rest = Draft(("tune test-slow --seconds 0.05",), start="@1")
    press(wizard, run.resume)
    assert wizard.session.head.made_by == "tune test-slow --seconds 0.05"
    assert run.resume.disabled


def test_a_training_that_left_a_checkpoint_goes_on_from_it(wizard, tmp_path):
    add(wizard, "tune finetune", epochs=100000.0, batch_size=8, checkpoint=str(tmp_path / "kept"))
    run = wizard.pane("Run")
    wizard.open("Run")
    run.start.click()
    until(lambda: (tmp_path / "kept" / "training.json").exists())
    run.cancel.click()
    wizard.worker.wait(30)
    assert "the same line with --resume goes on" in told(wizard)
    assert run.rest.steps[0].endswith("--resume")
    assert "--resume" in run.report.value


def test_a_second_run_while_one_runs_is_refused_and_the_kernel_stays_usable(wizard, offered, cells):
    offered(Slow)
    add(wizard, "tune test-slow")
    run = wizard.pane("Run")
    wizard.open("Run")
    run.start.click()
    until(lambda: "waiting" in run.bar._label.value)
    assert "a stage is running in this session" in cells.fails("%kd prune channels").message
    run.start.click()
    assert "running the pipeline is not done yet" in told(wizard)
    assert cells.give("1 + 1") == 2
    assert len(cells.give("%kd").session.versions) == 1
    run.cancel.click()
    wizard.worker.wait(10)


def buttons(widget):
    """All buttons in a widget, but the two that have nothing to go on from."""
    if isinstance(widget, ipywidgets.Button):
        return [] if widget.description in ("Resume", "Go on from the result") else [widget]
    return [button for child in getattr(widget, "children", ()) for button in buttons(child)]


def test_no_button_is_disabled_while_something_runs_since_the_one_that_was_pressed_would_lose_the_focus(wizard, offered):
    offered(Slow)
    add(wizard, "tune test-slow")
    for pane in wizard.panes:
        wizard.open(pane.title)
    before = [button.disabled for button in buttons(wizard.box)]
    wizard.pane("Run").start.click()
    until(lambda: "waiting" in wizard.pane("Run").bar._label.value)
    assert [button.disabled for button in buttons(wizard.box)] == before
    wizard.pane("Run").cancel.click()
    wizard.worker.wait(10)
    wizard.pane("Run").cancel.click()
    assert "nothing is running" in told(wizard)


def test_a_failure_is_told_with_its_hints_and_what_was_done_is_kept(wizard):
    add(wizard, "prune channels")
    add(wizard, "tune finetune", learning_rate=1e30, steps=3)
    run = wizard.pane("Run")
    wizard.open("Run")
    press(wizard, run.start)
    assert "failed" in told(wizard)
    assert "→" in told(wizard)
    assert wizard.session.head.made_by == "prune channels"
    assert not run.resume.disabled


# what happens beside it


def test_cancel_stops_what_runs_also_where_the_notebook_works_on_another_session_by_now(wizard, cells, offered):
    offered(Slow)
    add(wizard, "tune test-slow")
    run, session = wizard.pane("Run"), wizard.session
    wizard.open("Run")
    run.start.click()
    until(lambda: "waiting" in run.bar._label.value)
    cells.give("%kd use big --train {train};")
    run.cancel.click()
    wizard.worker.wait(10)
    assert not wizard.busy
    assert "cancelled" in told(wizard)
    assert len(session.versions) == 1
    assert run.resume.disabled, "what is left to do belongs to the other session"
    assert run.follow.disabled


def test_a_cancel_before_the_run_has_begun_is_not_forgotten(wizard, offered, monkeypatch):
    offered(Slow)
    add(wizard, "tune test-slow", seconds=1.0)
    session, run = wizard.session, wizard.session.run

    def cancelled_first(*given, **named):
        wizard.cancel()
        return run(*given, **named)

    monkeypatch.setattr(session, "run", cancelled_first)
    wizard.open("Run")
    press(wizard, wizard.pane("Run").start)
    assert "cancelled" in told(wizard)
    assert len(session.versions) == 1


def fault(*given):
    raise ValueError("a fault of ours")


def test_what_goes_wrong_in_a_button_or_in_showing_what_came_of_it_is_said(wizard, monkeypatch):
    add(wizard, "tune finetune", steps=1)
    wizard.open("Run")
    run = wizard.pane("Run")
    monkeypatch.setattr(run, "_end", fault)
    press(wizard, run.start)
    assert "done" in told(wizard)
    assert "ValueError: a fault of ours" in told(wizard)
    monkeypatch.setattr(run, "_begin", fault)
    wizard.say("")
    press(wizard, run.start)
    assert "ValueError: a fault of ours" in told(wizard)


def test_a_button_waits_until_what_is_done_is_shown(wizard, monkeypatch):
    add(wizard, "tune finetune", steps=1)
    wizard.open("Run")
    run, order, end = wizard.pane("Run"), [], wizard.pane("Run")._end

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
    wizard.worker.wait(10)
    assert order == ["shown", "all is shown", "pressed"]


# pictures, and what is taken along


@pytest.mark.parametrize("picture", ["compare", "pareto", "layers", "weights", "agreement", "confusion", "sensitivity"])
def test_every_picture_is_drawn_by_its_verb(wizard, picture):
    wizard.session.run("tune finetune --steps 1")
    pane = wizard.pane("Compare")
    wizard.open("Compare")
    pane.choice.value = picture
    press(wizard, pane.go)
    assert f"%kd {picture}" in code(wizard)
    assert "done" in told(wizard), told(wizard)
    assert "<table" in pane.result.value or "<svg" in pane.result.value


def test_the_frontier_is_drawn_without_being_asked_for_and_follows_the_form(wizard):
    wizard.session.run("tune finetune --steps 1")
    pane = wizard.pane("Compare")
    wizard.open("Compare")
    assert "against size" in pane.result.value
    assert "@1" in pane.table.value
    pane.form.control("cost").value = "parameters"
    assert "against parameters" in pane.result.value
    pane.form.control("cost").value = "parametres"
    assert "did you mean parameters" in pane.result.value


def test_a_version_is_saved_exported_reported_and_made_code_of(wizard, tmp_path):
    pane = wizard.pane("Export")
    wizard.open("Export")
    for word, path in (("save", "saved"), ("export", "net.onnx"), ("report", "told.html")):
        pane.choice.value = word
        pane.form.control("path").value = str(tmp_path / path)
        press(wizard, pane.go)
        assert "done" in told(wizard), told(wizard)
        assert (tmp_path / path).exists()
    pane.choice.value = "code"
    press(wizard, pane.go)
    assert "notebook:insert-cell-below" in pane.result.value
    assert not wizard.desk.shell.payload_manager.read_payload(), "no cell asked for a cell below it"


# opening and closing


def test_a_wizard_is_opened_on_a_form_a_line_a_cell_or_a_version(wizard):
    opening.begin(wizard, stage="prune.channels")
    assert (wizard.pane("Pipeline").family.value, wizard.pane("Pipeline").technique.value) == ("prune", "channels")
    opening.begin(wizard, stage="quantize")
    assert wizard.pane("Pipeline").family.value == "quantize"
    opening.begin(wizard, line="%kd prune channels --ratio 0.3 --on @base --as slim")
    assert wizard.draft == Draft(("prune channels --ratio 0.3",), "@base", "slim")
    assert wizard.pane("Pipeline").form.control("ratio").value == 0.3
    wizard.session.run("prune channels --ratio 0.5", label="slim")
    wizard.session.run("tune finetune --steps 1", label="tuned")
    opening.begin(wizard, line="@tuned")
    assert wizard.draft == Draft(("prune channels", "tune finetune --steps 1"), "@base"), "on what they were run on, not once more on what they made"


@pytest.mark.parametrize("words", ["nosuch", "prune nosuch", "--from @nosuch", '--from "prune chanels"'])
def test_who_asks_for_what_is_not_there_keeps_the_wizard_that_is_open(cells, monkeypatch, words):
    monkeypatch.setattr(cells.shell, "kernel", object(), raising=False)
    view = cells.give("%kd wizard;") or opening._open[cells.shell]
    opened = count()
    assert "nosuch" in (said := cells.fails(f"%kd wizard {words}").message) or "chanels" in said
    assert opening._open[cells.shell] is view
    assert view.wizard.box.comm is not None
    assert count() == opened


def test_a_version_that_is_dropped_while_the_pipeline_begins_with_it_is_told(wizard, cells):
    cells.give("%kd tune finetune --steps 1 --as slim;")
    cells.give("%kd tune finetune --steps 1;")
    wizard.redraft(Draft(("tune finetune --steps 1",), start="@slim"))
    wizard.open("Model")
    cells.give("%kd drop @slim;")
    wizard.refresh()
    assert "@slim was dropped" in wizard.pane("Model").about.value
    wizard.redraft(Draft(start="@gone"))
    assert "no version @gone" in wizard.pane("Model").about.value
    assert repr(wizard) == "kdkit wizard: 0 steps on @gone"


def test_the_model_is_shown_as_it_is_named_and_what_its_data_tells_once_it_is_given(bare, cells):
    cells.give("%kd use net;")
    wizard = Wizard(notebook.desk_of(cells.shell))
    model = wizard.pane("Model")
    assert "@base" in model.about.value
    before = model.layers.value
    cells.give("%kd set --eval {train};")
    cells.give("%kd keep @base --as first;")
    wizard.refresh()
    assert "@first" in model.about.value
    assert model.layers.value != before, "with data it has MACs"
    wizard.close()


def test_without_a_kernel_the_wizard_is_words(cells):
    page = cells.give("%kd wizard")
    assert isinstance(page, Page)
    assert "Here are no widgets" in repr(page)
    assert "%kd FAMILY TECHNIQUE --dry-run" in repr(page)
    assert "prune channels" in repr(page)


def test_without_a_kernel_what_is_asked_for_is_told_in_words_too(cells):
    assert "--ratio" in repr(cells.give("%kd wizard prune channels"))
    assert "prune channels" in (told := repr(cells.give("%kd wizard prune")))
    assert "distill soft" not in told.partition("technique")[2]
    told = repr(cells.give('%kd wizard --from "prune channels --ratio 0.3 --as slim"'))
    assert "%kd prune channels --ratio 0.3 --dry-run --as slim\n\n%kd prune channels --ratio 0.3 --as slim" in told
    assert "no family 'nosuch'" in cells.fails("%kd wizard nosuch").message


def count():
    gc.collect()
    return len(ipywidgets.widgets.widget._instances)


def test_closing_leaves_no_widget_thread_or_observer_behind(cells, offered):
    offered(Slow)
    desk = notebook.desk_of(cells.shell)
    before, threads = count(), threading.active_count()
    made = Wizard(desk)
    for pane in made.panes:
        made.open(pane.title)
    add(made, "prune channels")
    add(made, "tune test-slow")
    made.pane("Pipeline").rows[1].remove.click()
    add(made, "tune test-slow")
    made.open("Compare")
    for word in made.pane("Compare").choice.options:
        made.pane("Compare").choice.value = word
    made.open("Run")
    made.pane("Run").start.click()
    until(lambda: "waiting" in made.pane("Run").bar._label.value)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 2
    assert threading.active_count() == threads
    assert count() == before
    assert len(cells.session.versions) == 2


def test_opening_another_closes_the_one_that_was_open_and_so_does_unloading(cells, monkeypatch):
    desk, shown = notebook.desk_of(cells.shell), []
    monkeypatch.setattr(cells.shell, "kernel", object(), raising=False)
    monkeypatch.setattr("IPython.display.display", lambda *given, **named: shown.append(given))
    before = count()
    first = opening.open_wizard(desk)
    first._ipython_display_()
    assert "application/vnd.jupyter.widget-view+json" in shown[0][0]
    opened = count()
    opening.open_wizard(desk)
    assert first.wizard.box.comm is None
    assert count() == opened
    cells.shell.run_line_magic("unload_ext", "kdkit")
    assert count() == before


def test_a_wizard_that_is_opened_on_a_form_builds_that_tab_alone(cells, monkeypatch):
    desk = notebook.desk_of(cells.shell)
    monkeypatch.setattr(cells.shell, "kernel", object(), raising=False)
    wizard = opening.open_wizard(desk, "distill.soft").wizard
    assert [pane.title for pane in wizard.panes if wizard.is_built(pane.title)] == ["Pipeline"]
    wizard.open("Model")
    assert not wizard.is_built("Data and task")
    opening.close(cells.shell)


def test_opening_another_while_one_works_stops_that_and_says_so(cells, monkeypatch, offered):
    offered(Slow)
    monkeypatch.setattr(cells.shell, "kernel", object(), raising=False)
    first = opening.open_wizard(notebook.desk_of(cells.shell), line="tune test-slow")
    first.open("Run")
    first.press("Run", wait=False)
    until(lambda: "waiting" in first.wizard.pane("Run").bar._label.value)
    second = opening.open_wizard(notebook.desk_of(cells.shell))
    assert second.told == "running the pipeline was stopped, as the wizard was opened anew; the session is whole"
    assert second.wizard.draft.steps == ("tune test-slow",)
    assert len(cells.session.versions) == 1


def test_its_text_is_short_and_stable(wizard):
    add(wizard, "prune channels")
    assert repr(wizard) == "kdkit wizard: 1 step on @base"

"""Plugins that misbehave: wrong results, errors that end programs, changes to the process; each is named, put right, and takes nothing else down."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import time
import types
import warnings
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn

import kdkit
from kdkit import KdError, Measure, Session, Stage, hookimpl
from kdkit.backends.torch import TorchBackend
from kdkit.data import Data
from kdkit.display import Table
from kdkit.measurement.report import Figure
from kdkit.plugins import hookspecs
from kdkit.plugins.hook_results import CONTRIBUTED, RETURNED
from kdkit.plugins.manager import Manager, manager
from kdkit.tasks import Regression
from kdkit.views import View


class Scale(Stage):
    """Multiply every weight."""

    id: ClassVar = "tune.test-scale"

    def apply(self, model, context):
        for weight in model.parameters():
            weight.data.mul_(0.5)


class Wide(View):
    """A view."""

    def of(self, session):
        return Table(["a"], [[1]])


class Tracker:
    name = "test"

    def log(self, event): ...


def implementing(hook, function):
    """A plugin with one hook."""
    plugin = types.ModuleType(f"test_{hook}")
    function.__name__ = hook
    setattr(plugin, hook, hookimpl(function))
    return plugin


@pytest.fixture
def added():
    """Adds a plugin with one hook to the process's manager for the test."""
    names = []

    def add(hook, function, name=""):
        names.append(name or f"test-{hook}")
        manager().add(implementing(hook, function), names[-1])

    yield add
    for name in names:
        if manager().has_plugin(name):
            manager().unregister(name=name)
        manager()._plugins.pop(name, None)
    manager().forget()


@pytest.fixture
def session():
    torch.manual_seed(0)
    return Session(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), eval=(torch.randn(8, 4), torch.arange(8) % 3), measures=("parameters",))


# results of the wrong kind

RIGHT = {
    "kdkit_stages": [Scale],
    "kdkit_tasks": [Regression(name="depth")],
    "kdkit_measures": [Measure("one", "", "lower", len)],
    "kdkit_backends": [TorchBackend("mine")],
    "kdkit_codecs": [kdkit.storage.Codec("same", lambda tensor: None, lambda parts, data: parts["numbers"])],
    "kdkit_trackers": [Tracker()],
    "kdkit_views": [Wide],
}


def test_each_hook_has_a_kind_of_result():
    assert {*CONTRIBUTED, *RETURNED} == {name for name, value in vars(hookspecs).items() if name.startswith("kdkit_") and callable(value)}


@pytest.mark.parametrize("hook", CONTRIBUTED)
def test_the_right_records_are_taken(hook):
    fresh = Manager()
    fresh.add(implementing(hook, lambda: RIGHT[hook]), "mine")
    assert [plugin.status for plugin in fresh.plugins()] == ["ok"]


def wrong_records():
    for hook, right in RIGHT.items():
        other = right[0] if hook in ("kdkit_stages", "kdkit_views") else type(right[0])
        confused = other() if isinstance(right[0], type) else other
        yield from ((hook, wrong) for wrong in (42, "a text", None, {"a": 1}, [42], ["a text"], [None], right[0], [confused], [SimpleNamespace()]))


@pytest.mark.parametrize(("hook", "wrong"), wrong_records(), ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_a_plugin_whose_hook_returns_something_else_is_listed_as_broken_with_what_it_must_return(hook, wrong):
    fresh = Manager()
    try:
        fresh.add(implementing(hook, lambda: wrong), "mine")
        [plugin] = fresh.plugins()
        reason = plugin.reason
        assert plugin.status == "broken"
    except KdError as error:  # kdkit_stages is called when a plugin is added
        assert hook == "kdkit_stages"
        reason = error.message
    assert reason.startswith(f"its {hook} returned ")
    assert "it must return a list of" in reason or "; return an instance: " in reason or "; return the class: " in reason


ARGUMENTS = {
    "kdkit_adopt_model": {"obj": 3},
    "kdkit_adopt_data": {"obj": 3, "batch_size": 2},
    "kdkit_widget": {"stage": Scale, "name": "a", "value": 1},
    "kdkit_event": {"event": None},
    "kdkit_error_hints": {"error": ValueError(), "stage": None},
}


@pytest.mark.parametrize("wrong", [42, "a text", nn.Linear, Data, object()], ids=["number", "text", "model class", "data class", "object"])
@pytest.mark.parametrize("hook", ARGUMENTS)
def test_a_hook_that_answers_with_something_else_is_reported_and_the_next_is_asked(hook, wrong):
    fresh, reported = Manager(), []
    fresh.add(implementing(hook, lambda: wrong), "mine")
    assert 42 not in fresh.each(hook, reported.append, **ARGUMENTS[hook])
    assert fresh.first(hook, reported.append, **ARGUMENTS[hook]) in (None, [])
    assert reported[0].startswith(f"plugin mine: its {hook} returned ")
    assert "; it must return " in reported[0]
    assert [(plugin.status, plugin.reason) for plugin in fresh.plugins()] == [("broken", reported[0].removeprefix("plugin mine: "))]


@pytest.mark.parametrize("hints", [None, [], ["a"], (hint for hint in ["a"])])
def test_hints_may_be_any_texts(hints):
    fresh, reported = Manager(), []
    fresh.add(implementing("kdkit_error_hints", lambda: hints), "mine")
    fresh.each("kdkit_error_hints", reported.append, error=ValueError(), stage=None)
    assert reported == []


def runs(result):
    def kdkit_run_stage(stage, model, context):
        return result

    return kdkit_run_stage


def test_a_plugin_that_runs_stages_and_returns_something_else_is_named(added, session):
    added("kdkit_run_stage", runs(42), "mine")
    with pytest.raises(KdError, match="tune test-scale: plugin mine: its kdkit_run_stage returned 42; it must return an nn.Module or an Outcome"):
        session.run(Scale())
    assert len(session.versions) == 1
    assert [plugin.name for plugin in manager().problems] == ["mine"]


def test_a_wrapper_that_forgets_to_return_is_named_and_the_stage_is_not(added, session):
    class Wrapper:
        @hookimpl(wrapper=True)
        def kdkit_run_stage(self, stage):
            yield

    manager().add(Wrapper(), "wrapper")
    try:
        with pytest.raises(KdError, match="plugin wrapper: its kdkit_run_stage is a wrapper and returned nothing"):
            session.run(Scale())
    finally:
        manager().unregister(name="wrapper")
        manager()._plugins.pop("wrapper", None)


def test_a_stage_that_returns_something_else_is_named_and_a_wrapper_around_it_is_not(session):
    class Text(Scale):
        """Return a text."""

        def apply(self, model, context):
            return "done"

    class Wrapper:
        @hookimpl(wrapper=True)
        def kdkit_run_stage(self, stage):
            return (yield)

    manager().add(Wrapper(), "wrapper")
    try:
        with pytest.raises(KdError, match="tune test-scale .* returned a str instead of a model"):
            session.run(Text())
    finally:
        manager().unregister(name="wrapper")
        manager()._plugins.pop("wrapper", None)


# errors that end programs


class Ends(BaseException):
    """An error that no `except Exception` catches."""


LEAVING = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Ends("all"), MemoryError()]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["at import", "in kdkit_stages", "in kdkit_measures"])
@pytest.mark.parametrize("error", ["SystemExit(3)", "KeyboardInterrupt", "GeneratorExit", "BaseException('all')"])
def test_a_plugin_that_ends_the_program_is_broken_and_the_others_load(tmp_path, monkeypatch, error, when):
    body = f"raise {error}" if when == "at import" else f"import kdkit\n@kdkit.hookimpl\ndef {when.removeprefix('in ')}():\n    raise {error}"
    name = f"ending_{abs(hash((error, when)))}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    found = importlib.metadata.entry_points(group="kdkit")
    entry = importlib.metadata.EntryPoint("ending", name, "kdkit")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry, *found])
    fresh = Manager()
    fresh.discover()
    status = {plugin.name: plugin.status for plugin in fresh.plugins()}
    assert status.pop("ending") == "broken"
    assert set(status.values()) == {"ok"}
    assert "tune.finetune" in fresh.stages()
    assert fresh.named("kdkit_backends", "cpu").name == "cpu"
    assert error.partition("(")[0] in {plugin.name: plugin.reason for plugin in fresh.plugins()}["ending"]


@pytest.mark.parametrize("error", LEAVING, ids=lambda error: type(error).__name__)
def test_an_event_hook_that_ends_the_program_is_reported(added, session, error):
    def kdkit_event(event):
        raise error

    added("kdkit_event", kdkit_event, "mine")
    with pytest.warns(UserWarning, match=f"plugin mine: kdkit_event raised {type(error).__name__}"):
        session.run(Scale())
    assert len(session.versions) == 2


@pytest.mark.parametrize("error", LEAVING, ids=lambda error: type(error).__name__)
def test_a_measure_that_ends_the_program_is_noted_with_its_plugin(added, session, error):
    def fails(subject):
        raise error

    added("kdkit_measures", lambda: [Measure("watts", "W", "lower", fails)], "mine")
    report = session.set(measures=("watts", "parameters")).evaluate()
    assert list(report) == ["parameters"]
    assert report.notes[0].startswith(f"watts (of mine) was not measured: {type(error).__name__}")


def interrupt(*given):
    signal.raise_signal(signal.SIGINT)
    time.sleep(1)


def test_an_interrupt_of_the_user_in_a_measure_or_an_event_hook_cancels(added, session):
    added("kdkit_measures", lambda: [Measure("watts", "W", "lower", interrupt)], "mine")
    with pytest.raises(KeyboardInterrupt):
        session.set(measures=("watts",)).evaluate()
    session.set(measures=("parameters",))
    added("kdkit_event", lambda event: interrupt(), "other")
    with pytest.raises(KeyboardInterrupt):
        session.run(Scale())
    assert len(session.versions) == 1


# what measures return


@pytest.mark.parametrize(
    ("value", "stated"),
    [
        ("many", "was not measured: TypeError: str is not a number; a measure returns"),
        (object(), "was not measured: TypeError: object is not a number"),
        (torch.tensor(3.0), "was not measured: TypeError: Tensor is not a number"),
        ({"a": 1}, "was not measured: TypeError: str is not a number"),
        (float("nan"), "was not measured: ValueError: watts is nan"),
        (None, "gave no figure for this model"),
        (Figure("parameters", 3), "was not measured: another measure already returned a figure 'parameters': parameters"),
    ],
    ids=["text", "object", "tensor", "mapping", "nan", "nothing", "another's"],
)
def test_a_measure_that_returns_no_number_is_noted_in_one_line_with_its_plugin(added, session, value, stated):
    added("kdkit_measures", lambda: [Measure("watts", "W", "lower", lambda subject: value)], "mine")
    report = session.set(measures=("parameters", "watts")).evaluate()
    assert list(report) == ["parameters"]
    [note] = report.notes
    assert note.startswith(f"watts (of mine) {stated}")


@pytest.mark.slow
def test_two_plugins_with_a_measure_of_one_name_are_both_named(added, session):
    for name in ("mine", "yours"):
        added("kdkit_measures", lambda: [Measure("watts", "W", "lower", lambda subject: 3)], name)
    [note] = [note for note in session.set(measures=None).evaluate().notes if "watts" in note]
    assert note == "watts (of yours) was not measured: another measure already returned a figure 'watts': watts (of mine)"


# what measures and event hooks change


def spoil(model, batch=None):
    model.train()
    for weight in model.parameters():
        weight.data.zero_()
        weight.requires_grad_(False)
        weight.grad = torch.ones_like(weight)
    model[0].register_forward_hook(lambda *given: torch.full((1,), torch.nan))
    if batch is not None:
        batch.args[0].zero_()
        batch.labels.zero_()


def state(session):
    """Everything of the session's models and data that a plugin could change."""
    models = [version.model for version in session.versions] + [session.original]
    data = session.objects["eval"]
    return [
        [[(module.training, len(module._forward_hooks)) for module in model.modules()] for model in models],
        [[(weight.requires_grad, weight.grad, weight.tolist()) for weight in model.parameters()] for model in models],
        [(batch.args[0].tolist(), batch.labels.tolist()) for batch in (data.example(), *data.batches())],
    ]


def test_a_measure_changes_neither_models_nor_data(added, session):
    def spoils(subject):
        for model in (subject.model, subject.original, *([subject.reference.model] if subject.reference else [])):
            spoil(model, subject.example)
        for batch in subject.data.batches():
            spoil(subject.model[:1], batch)
        return 3

    session.run(Scale())
    before = state(session)
    added("kdkit_measures", lambda: [Measure("watts", "W", "lower", spoils)], "mine")
    report = session.set(measures=("watts", "quality")).evaluate()
    assert report["watts"].value == 3
    assert state(session) == before
    assert session.run(Scale())["watts"] == 3
    assert state(session)[0][:2] == before[0][:2]


def test_a_measure_reads_outputs_that_were_kept_and_can_not_change_them(added, session):
    calls = []

    def spoils(subject):
        with subject.answering() as call:
            for batch in subject.data.batches():
                output = call(batch)
                calls.append(output.abs().sum().item())
                output.zero_()
        return 3

    added("kdkit_measures", lambda: [Measure("watts", "W", "lower", spoils)], "mine")
    session.set(measures=("quality", "watts", "agreement")).evaluate()
    ran = []
    handle = session.head.model.register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    try:
        report = session.evaluate()
    finally:
        handle.remove()
    assert report["watts"].value == 3
    assert calls[0] > 0
    assert report["agreement"].value == 1
    assert calls[1] == calls[0]
    assert ran == []


def test_an_event_hook_and_a_tracker_receive_a_copy_of_the_model(added, session):
    seen = []

    class Spoiling:
        name = "spoiling"

        def log(self, event):
            if event.version is not None:
                seen.append(event.version.model[0].weight.tolist())
                spoil(event.version.model)

    added("kdkit_event", lambda event: Spoiling().log(event), "mine")
    added("kdkit_trackers", lambda: [Spoiling()], "yours")
    session.set(trackers=("spoiling",))
    session.run(Scale())
    assert seen == [session.head.model[0].weight.tolist()] * 2
    assert session.head.model[0].weight.abs().sum() > 0
    assert all(weight.requires_grad and weight.grad is None for weight in session.head.model.parameters())
    assert not session.head.model[0]._forward_hooks


# what plugins change in the process


def careless(*given):
    """Change something of each sort."""
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    warnings.simplefilter("error")
    os.environ["KDKIT_TEST_OF_PLUGINS"] = "1"
    os.chdir("/")
    sys.path.insert(0, "nowhere")
    torch.manual_seed(11)


def surroundings():
    return [torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters), dict(os.environ), os.getcwd(), list(sys.path), torch.get_rng_state().tolist()]


@pytest.fixture
def unchanged():
    """Checks after the test that the process is as before, and repairs it for the tests that follow."""
    from kdkit.guards.process_state import ProcessState

    before = ProcessState()
    manager()._named_changes.clear()
    yield
    assert before.put_back() == ["os.environ: PYTEST_CURRENT_TEST"]


STATED = "changed torch's gradient mode, torch's default dtype, the filters of warnings, os.environ: KDKIT_TEST_OF_PLUGINS, the working directory, sys.path"


def named(caught):
    return [str(warning.message) for warning in caught if "kdkit put it back" in str(warning.message)]


def test_what_the_import_of_a_plugin_changes_is_put_back_and_named(tmp_path, monkeypatch):
    (tmp_path / "careless_plugin.py").write_text("import os, torch\ntorch.set_default_dtype(torch.float64)\nos.environ['KDKIT_TEST_OF_PLUGINS'] = '1'\n")
    monkeypatch.syspath_prepend(tmp_path)
    fresh = Manager()
    with pytest.warns(UserWarning, match="plugin careless changed torch's default dtype, os.environ: KDKIT_TEST_OF_PLUGINS; kdkit put it back"):
        fresh._load("careless", importlib.metadata.EntryPoint("careless", "careless_plugin", "kdkit"))
    assert [plugin.status for plugin in fresh.plugins()] == ["ok"]
    assert torch.get_default_dtype() == torch.float32
    assert "KDKIT_TEST_OF_PLUGINS" not in os.environ


def refused(call, argument):
    with pytest.raises(KdError):
        call(argument)


CALLS = {
    "kdkit_event": lambda session: session.run(Scale()),
    "kdkit_error_hints": lambda session: refused(session.run, Failing()),
    "kdkit_adopt_model": lambda session: refused(Session, 3),
    "kdkit_measures": lambda session: session.set(measures=None),
}


class Failing(Scale):
    """Fail."""

    def apply(self, model, context):
        raise ZeroDivisionError


@pytest.mark.parametrize("hook", CALLS)
def test_what_a_hook_changes_is_put_back_and_named_once(added, session, unchanged, hook):
    def change():
        careless()
        return [] if hook != "kdkit_adopt_model" and hook != "kdkit_event" else None

    added(hook, change, "mine")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = surroundings()
        for _ in range(2):
            CALLS[hook](session)
            list(manager().contributions("kdkit_measures"))
        assert surroundings()[:-1] == before[:-1]
    assert [message for message in named(caught) if message.startswith("plugin mine")] == [f"plugin mine {STATED}, torch's random state; kdkit put it back"]


def test_what_a_stage_its_check_or_its_forecast_changes_is_put_back_and_named(session, unchanged):
    class Careless(Scale):
        """Change everything."""

        def apply(self, model, context):
            careless()
            super().apply(model, context)

        def check(self, model, context):
            os.environ["KDKIT_TEST_OF_CHECK"] = "1"
            return ()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session.run(Careless())
    assert named(caught) == [
        "tune test-scale (of kdkit) changed os.environ: KDKIT_TEST_OF_CHECK; kdkit put it back",
        f"tune test-scale (of kdkit) {STATED}; kdkit put it back",
    ]
    assert len(session.versions) == 2


def test_what_a_measure_a_tracker_or_a_view_changes_is_put_back_and_named(added, session, unchanged):
    class CarelessTracker(Tracker):
        log = careless

    class CarelessView(View):
        """A view."""

        def of(self, session):
            careless()
            return Table(["a"], [[1]])

    added("kdkit_measures", lambda: [Measure("watts", "W", "lower", lambda subject: careless() or 3)], "mine")
    added("kdkit_trackers", lambda: [CarelessTracker()], "yours")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session.set(measures=("watts",), trackers=("test",)).run(Scale())
        session.show(CarelessView())
    assert [message.partition(" changed")[0] for message in named(caught)] == ["tracker test", "measure watts (of mine)", "view careless-view"]


def test_a_view_that_ends_the_program_is_an_error_that_names_it(session):
    class Exits(View):
        """A view."""

        def of(self, session):
            raise SystemExit(3)

    with pytest.raises(KdError, match="exits failed: SystemExit: 3"):
        session.show(Exits())

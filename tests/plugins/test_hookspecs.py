"""The hooks, one by one: answered from a cell, as a plugin's module answers them, and what comes of it."""

from __future__ import annotations

from types import ModuleType

import pluggy
import pytest
import torch
from torch import nn

import kdkit
from kdkit import KdError, Session
from kdkit.backends.torch import TorchBackend
from kdkit.data import Data
from kdkit.measurement.measure import Measure
from kdkit.plugins import hookspecs
from kdkit.plugins.discovery import published
from kdkit.plugins.manager import Manager, manager
from kdkit.tasks import Regression

SMALL = {"measures": ("quality", "parameters")}


@pytest.fixture
def answering(offered):
    """`kdkit.offer`, taken back after the test."""
    yield kdkit.offer
    for name in vars(hookspecs):
        manager().unregister_hook(name)


@pytest.fixture
def session():
    torch.manual_seed(0)
    return Session(nn.Linear(4, 3), eval=(torch.randn(8, 4), torch.arange(8) % 3), **SMALL)


@pytest.fixture
def halve(offered):
    @kdkit.stage("tune.test-halve")
    def halve(model, context, *, factor: float = kdkit.param(0.5, "factor", gt=0)):
        """Multiply every weight."""
        context.progress(1, 2)
        for weight in model.parameters():
            weight.data *= factor
        if factor == 13:
            raise ZeroDivisionError("thirteen")

    return halve


def test_kdkit_stages_are_offered_beside_those_of_cells(answering, halve):
    class Third(halve):
        """A third."""

        id = "tune.test-third"

    @answering
    def kdkit_stages():
        return [Third]

    assert manager().stage("tune.test-third") is Third
    assert manager().provider("tune.test-third").name == "notebook:kdkit_stages"
    assert manager().stage("tune.test-halve") is halve


def test_kdkit_tasks_are_chosen_by_name_and_two_of_one_name_are_distinguished(answering, session):
    @answering
    def kdkit_tasks():
        return [Regression(name="depth")]

    assert session.set(task="depth").task.name == "depth"

    @answering
    def kdkit_tasks():  # noqa: F811
        return [Regression(name="classification")]

    with pytest.raises(KdError, match=r"task 'classification' is offered by kdkit .*\(tasks\) and by notebook:kdkit_tasks"):
        session.set(task="classification")


def test_a_plugin_whose_kdkit_tasks_raises_takes_no_task_away(answering, session):
    @answering
    def kdkit_tasks():
        raise ZeroDivisionError("tasks")

    assert session.set(task="classification").task.name == "classification"
    assert [(each.name, each.reason) for each in manager().problems] == [("notebook:kdkit_tasks", "ZeroDivisionError: tasks")]


def test_kdkit_measures_are_in_the_report(answering, session, halve):
    @answering
    def kdkit_measures():
        return [Measure("biggest", "", "lower", lambda subject: float(subject.model.weight.detach().abs().max()))]

    session.set(measures=("parameters", "biggest"))
    before = session.evaluate()["biggest"].value
    assert session.run("tune test-halve")["biggest"] == pytest.approx(before / 2)


def test_kdkit_codecs_encode_what_is_saved(answering, tmp_path):
    from kdkit.models import Storage
    from kdkit.storage import Codec

    class Runs(kdkit.Stage):
        """Store zeros as their number."""

        id = "encode.zeros"

        def storage(self):
            return Storage("zeros")

    @answering
    def kdkit_codecs():
        return [Codec("zeros", lambda tensor: None if tensor.any() else ({}, list(tensor.shape)), lambda parts, shape: torch.zeros(shape))]

    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.bias)
    session = Session(layer, **SMALL)
    session.run(Runs())
    session.save(tmp_path / "m")
    assert Session.open(tmp_path / "m", nn.Linear(4, 3), measures=()).head.storage == Storage("zeros")


def test_kdkit_backends_run_versions(answering, session):
    @answering
    def kdkit_backends():
        return [TorchBackend("cpu-fp64", dtype="float64")]

    session.set(backend="cpu-fp64")
    assert session.evaluate()["accuracy"].backend == "cpu-fp64"


class Listener:
    def __init__(self, name, received):
        self.name, self.received = name, received

    def log(self, event):
        self.received.append(event.kind)
        if self.name == "faulty":
            raise ZeroDivisionError("log")


def test_kdkit_trackers_receive_events_only_while_they_are_on(answering, session, halve):
    received, other, made = [], [], []

    @answering
    def kdkit_trackers():
        made.append(1)
        return [Listener("one", received), Listener("other", other)]

    session.run("tune test-halve")
    assert received == []
    session.set(trackers=("one",))
    tracker = session.trackers["one"]
    session.run("tune test-halve")
    assert received == ["started", "progress", "finished"]
    with pytest.raises(KdError):
        session.run("tune test-halve --factor 13")
    assert received[3:] == ["started", "progress", "failed"]
    session.set(seed=3)
    assert session.trackers["one"] is tracker
    session.set(trackers=())
    session.run("tune test-halve")
    assert len(received) == 6
    assert other == []


def test_a_tracker_that_raises_is_reported_and_does_no_harm(answering, session, halve):
    received = []

    @answering
    def kdkit_trackers():
        return [Listener("faulty", received)]

    session.set(trackers="faulty")
    with pytest.warns(UserWarning, match="tracker faulty: log raised ZeroDivisionError: log"):
        session.run("tune test-halve")
    assert received == ["started", "progress", "finished"]


def test_a_tracker_that_is_not_there_is_reported_and_changes_nothing(answering, session):
    with pytest.raises(KdError, match="no tracker 'mlfow'") as caught:
        session.set(trackers="mlfow", seed=5)
    assert "no plugin brings a tracker" in caught.value.hints

    @answering
    def kdkit_trackers():
        return [Listener("mlflow", [])]

    with pytest.raises(KdError) as caught:
        session.set(trackers="mlfow", seed=5)
    assert "did you mean mlflow?" in caught.value.hints
    assert session.settings["seed"] == 0


def test_a_tracker_is_turned_on_and_off_from_a_line(answering, halve):
    from tests.fixtures.notebook import Notebook

    received = []

    @answering
    def kdkit_trackers():
        return [Listener("one", received)]

    cells = Notebook()
    cells.shell.push({"net": nn.Linear(4, 3), "data": (torch.randn(8, 4), torch.arange(8) % 3)})
    cells.give("%kd use net --eval {data} --measures parameters --trackers one")
    cells.give("%kd tune test-halve")
    assert received == ["started", "progress", "finished"]
    cells.give("%kd set --no-trackers")
    cells.give("%kd tune test-halve")
    assert len(received) == 3


def test_kdkit_views_become_verbs_and_lines_of_session_show(answering, session):
    from kdkit.display import Table
    from kdkit.notebook.verb import verbs

    class Waterfall(kdkit.View):
        """How the parameters change from version to version."""

        def of(self, session):
            return Table(["version", "parameters"], [[version.name, version["parameters"]] for version in session.versions])

    @answering
    def kdkit_views():
        return [Waterfall]

    assert session.show("waterfall").rows == [["@base", 15.0]]
    assert verbs()["waterfall"].view is Waterfall
    assert manager().plugins()[-1].offers == ("kdkit_views",)


class Table:
    def __init__(self, *batches):
        self.batches = batches


def test_kdkit_adopt_data_makes_data_of_what_the_kit_does_not_know(answering, session):
    @answering
    def kdkit_adopt_data(obj):
        return Data(lambda: obj.batches, "a table") if isinstance(obj, Table) else None

    session.set(train=Table(torch.zeros(2, 4), torch.ones(3, 4)))
    assert [batch.size for batch in session.objects["train"].batches()] == [2, 3]


def test_one_kdkit_adopt_data_that_raises_is_reported_and_the_next_is_asked(answering, session):
    class Adopts:
        @kdkit.hookimpl
        def kdkit_adopt_data(self, obj):
            return Data(lambda: obj.batches, "a table") if isinstance(obj, Table) else None

    manager().register(Adopts(), "test-adopts")
    try:

        @answering
        def kdkit_adopt_data(obj):
            raise ZeroDivisionError("adopting")

        with pytest.warns(UserWarning, match="plugin notebook:kdkit_adopt_data: kdkit_adopt_data raised ZeroDivisionError: adopting"):
            session.set(train=Table(torch.zeros(2, 4)))
        assert "train" in session.objects

        @answering
        def kdkit_adopt_data(obj):  # noqa: F811
            raise KdError("this table is locked", "unlock it")

        with pytest.raises(KdError, match="this table is locked"):
            session.set(train=Table(torch.zeros(2, 4)))
    finally:
        manager().unregister(name="test-adopts")


def test_kdkit_adopt_model_makes_a_model_of_what_is_none(answering):
    class Estimator:
        module_ = nn.Linear(4, 3)

    @answering
    def kdkit_adopt_model(obj):
        return getattr(obj, "module_", None)

    assert Session(Estimator(), example=torch.zeros(1, 4), measures=("parameters",)).head["parameters"] == 15
    with pytest.raises(KdError, match="int is not a model"):
        Session(3)


def test_kdkit_widget_answers_for_its_own_parameter_and_leaves_the_others(answering, halve):
    @answering
    def kdkit_widget(stage, name, value):
        return f"a control for {value}" if name == "factor" else None

    assert manager().hook.kdkit_widget(stage=halve, name="factor", value=0.5) == "a control for 0.5"
    assert manager().hook.kdkit_widget(stage=halve, name="other", value=0.5) is None


def test_kdkit_run_stage_may_be_wrapped_and_takes_only_the_arguments_it_wants(answering, session, halve):
    seen = []

    @answering
    @kdkit.hookimpl(wrapper=True)
    def kdkit_run_stage(stage):
        seen.append(stage.id)
        return (yield)

    session.run("tune test-halve")
    assert seen == ["tune.test-halve"]


def test_kdkit_event_tells_what_the_stage_made_and_why_it_failed(answering, session, halve):
    received = []

    @answering
    def kdkit_event(event):
        received.append(event)

    made = session.run("tune test-halve")
    with pytest.raises(KdError):
        session.run("tune test-halve --factor 13")
    assert [event.kind for event in received] == ["started", "progress", "finished", "started", "progress", "failed"]
    assert received[2].version.number == made.number
    assert received[1].progress.done == 1
    assert str(received[-1].error.__cause__) == "thirteen"


def test_kdkit_error_hints_are_in_the_message(answering, session, halve):
    @answering
    def kdkit_error_hints(error, stage):
        return [f"{stage.factor} brings bad luck"] if isinstance(error, ZeroDivisionError) else []

    with pytest.raises(KdError) as caught:
        session.run("tune test-halve --factor 13")
    assert "13.0 brings bad luck" in caught.value.hints


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "its kdkit_measures returned nothing; it must return a list of kdkit.Measure"),
        (Measure("one", "", "lower", len), "its kdkit_measures returned one Measure; it must return a list of kdkit.Measure"),
        ([Measure], "its kdkit_measures returned the class Measure; return an instance: Measure()"),
        ([3], "its kdkit_measures returned a list with 3; it must return a list of kdkit.Measure"),
    ],
)
def test_a_contribution_that_is_no_list_of_named_records_is_reported_and_harms_no_other(answering, session, answer, reason):
    @answering
    def kdkit_measures():
        return answer

    assert session.set(measures="parameters").evaluate()["parameters"].value == 15
    assert [each.reason for each in manager().problems] == [reason]


# answering from cells


def test_running_a_cell_again_replaces_its_answer(answering, session):
    for name in ("one", "other"):

        @answering
        def kdkit_tasks(name=name):
            return [Regression(name=name)]

    assert session.set(task="other").task.name == "other"
    with pytest.raises(KdError, match="no task 'one'"):
        session.set(task="one")


def test_a_wrong_answer_leaves_the_one_before_it(answering):
    @answering
    def kdkit_error_hints(error):
        return ["before"]

    with pytest.raises(Exception, match="eror"):

        @answering
        def kdkit_error_hints(eror):
            return ["after"]

    assert ["before"] in manager().each("kdkit_error_hints", print, error=None, stage=None)


def test_a_mistyped_hook_is_refused_with_the_name_that_was_meant(answering):
    with pytest.raises(KdError, match="kdkit_measure'") as caught:

        @answering
        def kdkit_measure():
            return []

    assert "did you mean kdkit_measures?" in caught.value.hints


def test_a_wrapper_where_there_is_nothing_to_wrap_is_refused(answering):
    with pytest.raises(KdError, match="it wraps kdkit_event, which kdkit calls for each plugin separately"):

        @answering
        @kdkit.hookimpl(wrapper=True)
        def kdkit_event(event):
            return (yield)


def test_what_a_cell_answers_can_be_blocked_and_unblocked(answering, session):
    @answering
    def kdkit_tasks():
        return [Regression(name="depth")]

    manager().block("notebook:kdkit_tasks")
    with pytest.raises(KdError, match="no task 'depth'"):
        session.set(task="depth")
    manager().unblock("notebook:kdkit_tasks")
    assert session.set(task="depth").task.name == "depth"


def test_in_an_installed_plugins_module_an_offer_is_a_hook_like_any_other():
    def kdkit_event(event):
        return None

    kdkit_event.__module__ = "kdkit_prune.channels"
    assert published(kdkit_event.__module__)
    kdkit.offer(kdkit_event)
    assert kdkit_event.kdkit_impl
    assert not manager().has_plugin("notebook:kdkit_event")


# compatibility


def test_a_hook_may_be_given_a_new_argument_without_breaking_those_who_do_not_know_it(monkeypatch):
    received = []

    class Old:
        @kdkit.hookimpl
        def kdkit_event(self, event):
            received.append(event)

    class New:
        @kdkit.hookimpl
        def kdkit_event(self, event, session):
            received.append((event, session))

    with pytest.raises(pluggy.PluginValidationError, match="session"):
        Manager().add(New(), "new")

    @hookspecs.hookspec
    def kdkit_event(event, session):
        """The same hook, one argument later."""

    monkeypatch.setattr(hookspecs, "kdkit_event", kdkit_event)
    later = Manager()
    later.add(Old(), "old")
    later.add(New(), "new")
    later.each("kdkit_event", print, event="finished", session="mine")
    assert received == ["finished", ("finished", "mine")]


@pytest.mark.parametrize(("api", "stated"), [(3, "speaks no later one than 2; update kdkit"), (0, "speaks none before 1; update the plugin"), ("1", "is not the number")])
def test_a_plugin_for_a_contract_that_is_not_spoken_is_refused_with_what_to_update(monkeypatch, api, stated):
    monkeypatch.setattr("kdkit.stages.validation.API", 2)
    plugin = ModuleType("plugin")
    plugin.kdkit_api = api
    with pytest.raises(KdError, match=stated):
        Manager().add(plugin, "plugin")


@pytest.mark.parametrize("api", [1, 2])
def test_a_plugin_for_any_contract_that_is_still_spoken_is_taken(monkeypatch, api):
    monkeypatch.setattr("kdkit.stages.validation.API", 2)
    plugin = ModuleType("plugin")
    plugin.kdkit_api = api
    Manager().add(plugin, "plugin")

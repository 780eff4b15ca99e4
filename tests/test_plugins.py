"""The plugin manager: isolation, choice, conflicts, notebook cells."""

from types import SimpleNamespace
from typing import ClassVar

import pluggy
import pytest
import torch

from kdkit import KdError, Stage, hookimpl, param, plugins
from kdkit.contract import LINE_OPTIONS, faults, stage
from kdkit.plugins import Manager, manager


class Good(Stage):
    """A stage that is whole."""

    id: ClassVar = "prune.test-good"

    def apply(self, model, context):
        return model


class Offering:
    def __init__(self, *stages):
        self.stages = stages

    @hookimpl
    def kdkit_stages(self):
        return self.stages


@pytest.fixture
def fresh():
    """A manager that has discovered nothing."""
    return Manager()


def test_the_first_party_plugins_are_found_through_the_entry_points_like_a_strangers():
    found = {plugin.name: plugin for plugin in manager().plugins()}
    for family in ("convert", "decompose", "distill", "peft", "prune", "quantize", "tune"):
        assert (found[family].distribution, found[family].status) == ("kdkit", "ok"), found[family].reason
        assert found[family].offers


def test_what_a_plugin_offers_can_be_had_by_id(fresh):
    fresh.add(Offering(Good), "good")
    assert fresh.stage("prune.test-good") is Good
    assert fresh.provider("prune.test-good").name == "good"


def test_a_class_is_instantiated(fresh):
    class Plugin:
        @hookimpl
        def kdkit_stages(self):
            return [Good]

    fresh.add(Plugin, "class")
    assert fresh.stage("prune.test-good") is Good


def test_a_mistyped_hook_is_refused_at_once_with_the_name_that_was_meant(fresh):
    class Plugin:
        @hookimpl
        def kdkit_stage(self):
            return []

    with pytest.raises(KdError, match="kdkit_stage") as caught:
        fresh.add(Plugin(), "typo")
    assert "did you mean kdkit_stages" in caught.value.hints[0]


def test_a_hook_with_an_argument_that_does_not_exist_is_refused(fresh):
    class Plugin:
        @hookimpl
        def kdkit_run_stage(self, stage, modle):
            return None

    with pytest.raises(pluggy.PluginValidationError, match="modle"):
        fresh.add(Plugin(), "argument")


def test_two_offers_of_one_id_are_an_error_that_names_both_and_the_rest_works(fresh):
    class Other(Good):
        """Another."""

    class Third(Good):
        """A third."""

        id: ClassVar = "prune.test-third"

    fresh.add(Offering(Good), "one")
    fresh.add(Offering(Other, Third), "two")
    with pytest.raises(KdError, match=r"prune test-good is offered by one and by two"):
        fresh.stage("prune.test-good")
    assert fresh.stage("prune.test-third") is Third
    assert "prune.test-good" not in fresh.stages()


def test_blocking_one_of_them_ends_the_conflict_and_unknown_names_are_told(monkeypatch):
    class Mine(Stage):
        """A stage of a cell under a name that is taken: refused, and not what is missing while the plugin is blocked."""

        id: ClassVar = "prune.channels"

    fresh = Manager()
    fresh.discover()
    assert "prune.channels" in fresh.stages()
    assert [plugin.status for plugin in fresh.block("prune")] == ["blocked"]
    assert "prune.channels" not in fresh.stages()
    with pytest.raises(KdError, match="no family 'prune'") as caught:
        fresh.stage("prune.channels")
    assert any("(prune) may offer more, but is blocked" in hint for hint in caught.value.hints)
    assert [plugin.status for plugin in fresh.allow("prune")] == ["ok"]
    assert "prune.channels" in fresh.stages()
    with pytest.raises(KdError, match="no plugin 'prun'") as caught:
        fresh.block("prun")
    assert "did you mean prune" in caught.value.hints[0]


@pytest.mark.parametrize(("chosen", "ok"), [("", set()), ("prune, tune", {"prune", "tune"}), ("kdkit", {"prune", "tune", "distill"})])
def test_the_environment_chooses_plugins_by_name_or_distribution(monkeypatch, chosen, ok):
    monkeypatch.setenv("KDKIT_PLUGINS", chosen)
    fresh = Manager()
    fresh.discover()
    loaded = {plugin.name for plugin in fresh.plugins() if plugin.status == "ok"}
    assert ok <= loaded
    assert loaded <= ok or chosen == "kdkit"


def test_strict_mode_lets_an_authors_error_out(monkeypatch):
    monkeypatch.setenv("KDKIT_STRICT_PLUGINS", "1")
    fresh = Manager()
    fresh._entries["gone"] = plugins.importlib.metadata.EntryPoint("gone", "a_module_that_is_not_there", "kdkit")
    with pytest.raises(ModuleNotFoundError):
        fresh._load("gone")


def test_a_contribution_that_raises_marks_its_plugin_broken_and_loses_no_other(fresh):
    class Raises:
        @hookimpl
        def kdkit_measures(self):
            raise ZeroDivisionError("measures")

    figure = SimpleNamespace(name="figure")

    class Gives:
        @hookimpl
        def kdkit_measures(self):
            return [figure]

    fresh.add(Gives(), "gives")
    fresh.add(Raises(), "raises")
    assert [record for _, record in fresh.contributions("kdkit_measures")] == [figure]
    assert [(plugin.name, plugin.reason) for plugin in fresh.problems] == [("raises", "ZeroDivisionError: measures")]


def test_a_listener_that_raises_is_reported_and_the_others_hear(fresh):
    heard, told = [], []

    class Raises:
        @hookimpl
        def kdkit_event(self, event):
            raise ZeroDivisionError(event)

    class Hears:
        @hookimpl
        def kdkit_event(self, event):
            heard.append(event)

    fresh.add(Hears(), "hears")
    fresh.add(Raises(), "raises")
    fresh.each("kdkit_event", told.append, event="started")
    assert heard == ["started"]
    assert told == ["plugin raises: kdkit_event raised ZeroDivisionError: started"]


def test_a_function_in_a_cell_is_a_stage_and_running_the_cell_again_replaces_it(offered):
    for default in (0.1, 0.2):

        @stage("prune.test-cell")
        def cell(model, context, *, share: float = param(default, "share", ge=0, le=1)):
            """Do something."""

    assert manager().stage("prune.test-cell")().share == 0.2
    assert cell(share=0.5).line() == "prune test-cell --share 0.5"
    with pytest.raises(KdError, match="--share 2"):
        cell.build("prune test-cell", {"share": 2})


def test_a_cell_can_not_take_an_installed_id(offered):
    with pytest.raises(KdError, match=r"prune\.channels is offered by kdkit .* \(prune\) already"):

        @stage("prune.channels")
        def mine(model, context):
            """Mine."""


def test_a_parameter_without_a_type_is_refused_by_name(offered):
    with pytest.raises(KdError, match="cell: share has no type"):

        @stage("prune.test-cell")
        def cell(model, context, *, share=0.1):
            """Do something."""


def test_parameters_need_not_be_keyword_only(offered):
    @stage("prune.test-cell")
    def cell(model, context, share: float = 0.1):
        """Do something."""

    assert cell(share=0.5).line() == "prune test-cell --share 0.5"


def no_context(model):
    """Do something."""


def anything(model, context, **options):
    """Do something."""


def takes_a_ratio_for_the_context(model, ratio: float = 0.3):
    """Do something."""


def takes_version(model, context, *, version: int = 3):
    """Do something."""


def takes_tensor(model, context, *, scale: torch.Tensor = None):
    """Do something."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_context, r"no_context\(model\) is not the form of a stage"),
        (anything, r"anything\(model, context, \*\*options\) is not the form of a stage"),
        (takes_a_ratio_for_the_context, "is not the form of a stage"),
        (takes_version, "takes_version: a parameter can't be named version"),
        (takes_tensor, "takes_tensor: Unable to generate pydantic-core schema for <class 'torch.Tensor'>"),
    ],
)
def test_a_function_that_can_be_no_stage_is_told_why(offered, function, message):
    with pytest.raises(KdError, match=message) as caught:
        stage("prune.test-cell")(function)
    assert caught.value.hints


def _made(**body):
    return type(Stage)("Made", (Stage,), {"__module__": __name__, "__qualname__": "Made", "__doc__": "Made.", "id": "prune.made", "apply": lambda *_: None, **body})


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"id": "Prune.Made"}, "lower-case"),
        ({"api": 0}, "update the plugin"),
        ({"api": 99}, "update kdkit"),
        ({"__doc__": None}, "no docstring"),
        ({"apply": Stage.apply}, "has no apply"),
        ({"__annotations__": {"x": int}, "x": 3}, "parameter x has no help"),
        ({"__annotations__": {"seed": int}, "seed": param(3, "seed")}, "an option of every %kd line"),
        ({"__annotations__": {"x": dict}, "x": param({}, "x")}, "which no option can carry"),
        ({"__annotations__": {"no_x": bool}, "no_x": param(True, "x")}, "turned off"),
    ],
)
def test_each_fault_of_a_stage_is_said(body, fault):
    body["__annotations__"] = {"id": ClassVar, "api": ClassVar} | body.get("__annotations__", {})
    assert any(fault in said for said in faults(_made(**body))), list(faults(_made(**body)))


def test_the_options_that_a_stage_must_leave_to_the_line_are_those_of_the_line():
    from kdkit.notebook.verbs import Line, Running

    assert {*Line.model_fields, *Running.model_fields} == LINE_OPTIONS


def test_a_whole_stage_has_no_fault():
    assert list(faults(Good)) == []

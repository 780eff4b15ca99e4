"""The plugin manager: isolation, choice, conflicts, notebook cells."""

import importlib.metadata
from typing import ClassVar

import pluggy
import pytest

from kdkit import KdError, Measure, Stage, hookimpl, param
from kdkit.plugins.manager import Manager, manager
from kdkit.stages.validation import validate_stage


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


def test_blocking_one_of_them_ends_the_conflict_and_unknown_names_are_reported(monkeypatch):
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
    assert [plugin.status for plugin in fresh.unblock("prune")] == ["ok"]
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
    with pytest.raises(ModuleNotFoundError):
        fresh._load("gone", importlib.metadata.EntryPoint("gone", "a_module_that_is_not_there", "kdkit"))


def test_a_contribution_that_raises_marks_its_plugin_broken_and_loses_no_other(fresh):
    class Raises:
        @hookimpl
        def kdkit_measures(self):
            raise ZeroDivisionError("measures")

    figure = Measure("figure", "", "lower", len)

    class Gives:
        @hookimpl
        def kdkit_measures(self):
            return [figure]

    fresh.add(Gives(), "gives")
    fresh.add(Raises(), "raises")
    assert [record for _, record in fresh.contributions("kdkit_measures")] == [figure]
    assert [(plugin.name, plugin.reason) for plugin in fresh.problems] == [("raises", "ZeroDivisionError: measures")]


def test_a_listener_that_raises_is_reported_and_the_others_are_called(fresh):
    received, reported = [], []

    class Raises:
        @hookimpl
        def kdkit_event(self, event):
            raise ZeroDivisionError(event)

    class Receives:
        @hookimpl
        def kdkit_event(self, event):
            received.append(event)

    fresh.add(Receives(), "hears")
    fresh.add(Raises(), "raises")
    fresh.each("kdkit_event", reported.append, event="started")
    assert received == ["started"]
    assert reported == ["plugin raises: kdkit_event raised ZeroDivisionError: started"]


def test_an_interrupted_discovery_forgets_everything_and_the_next_call_starts_again(monkeypatch):
    monkeypatch.setattr("kdkit.plugins.manager._manager", None)
    load = importlib.metadata.EntryPoint.load

    def interrupted(entry):
        if entry.name == "prune":
            raise KeyboardInterrupt
        return load(entry)

    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager()
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", load)
    assert {plugin.name: plugin.status for plugin in manager().plugins()}["prune"] == "ok"
    assert manager() is manager()


def test_a_later_discovery_that_was_interrupted_tries_the_same_plugin_again(monkeypatch):
    fresh, load = Manager(), importlib.metadata.EntryPoint.load

    def interrupted(entry):
        if entry.name == "tune":
            raise KeyboardInterrupt
        return load(entry)

    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fresh.discover()
    assert "prune.channels" in fresh.stages()
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", load)
    fresh.discover()
    assert "tune.finetune" in fresh.stages()


def test_a_plugin_may_ask_for_the_manager_while_it_is_loaded(monkeypatch):
    monkeypatch.setattr("kdkit.plugins.manager._manager", None)
    load, found = importlib.metadata.EntryPoint.load, []

    def curious(entry):
        found.append(manager())
        return load(entry)

    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", curious)
    whole = manager()
    assert found
    assert all(each is whole for each in found)


def test_an_interrupt_while_a_plugin_is_added_leaves_nothing_of_it(fresh):
    class Interrupted:
        @hookimpl
        def kdkit_stages(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fresh.add(Interrupted(), "interrupted")
    assert not fresh.has_plugin("interrupted")
    assert fresh.plugins() == []


def test_old_names_work_and_warn(fresh):
    def kdkit_error_hints(error):
        return ["a hint"]

    hookimpl(kdkit_error_hints)
    with pytest.warns(DeprecationWarning, match="register_hook"):
        fresh.answer(kdkit_error_hints)
    fresh.block("notebook:kdkit_error_hints")
    with pytest.warns(DeprecationWarning, match="unblock"):
        assert [plugin.status for plugin in fresh.allow("notebook:kdkit_error_hints")] == ["ok"]


def _made(**body):
    return type(Stage)("Made", (Stage,), {"__module__": __name__, "__qualname__": "Made", "__doc__": "Made.", "id": "prune.made", "apply": lambda *_: None, **body})


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"id": "Prune.Made"}, "lower-case"),
        ({"id": "list.made"}, "family list is a verb of %kd"),
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
def test_each_fault_of_a_stage_is_reported(body, fault):
    body["__annotations__"] = {"id": ClassVar, "api": ClassVar} | body.get("__annotations__", {})
    assert any(fault in stated for stated in validate_stage(_made(**body))), list(validate_stage(_made(**body)))


def test_a_valid_stage_has_no_fault():
    assert list(validate_stage(Good)) == []

"""The stage registry: which stage an id means, who offers it, and what to do where none does."""

from __future__ import annotations

from typing import ClassVar

import pytest

from kdkit import KdError, Stage
from kdkit.plugins.discovery import Plugin
from kdkit.plugins.notebook_plugin import Notebook
from kdkit.plugins.stage_registry import StageRegistry
from kdkit.stages.validation import validate_stage


class Good(Stage):
    """A valid stage."""

    id: ClassVar = "prune.test-registry-good"

    def apply(self, model, context):
        return model


class Other(Good):
    """Another stage of the same id."""


class Tune(Good):
    """A stage of another family."""

    id: ClassVar = "tune.test-registry"


class Bare(Stage):
    """A stage without apply."""

    id: ClassVar = "prune.test-registry-bare"


def registry(*offers: tuple[str, type[Stage]], plugins: tuple[Plugin, ...] = ()) -> StageRegistry:
    """A registry of plugins that offer stages."""
    notebook = Notebook()
    known = {name: Plugin(name, f"kdkit-{name}", "0.1") for name, _ in offers} | {plugin.name: plugin for plugin in plugins}
    return StageRegistry(lambda: [*offers, *(("notebook", stage) for stage in notebook.kdkit_stages())], known, notebook)


def test_a_stage_is_found_by_id_with_who_offers_it() -> None:
    found = registry(("one", Good), ("other", Tune))
    assert found.find(Good.id) is Good
    assert found.provider(Good.id).source == "kdkit-one 0.1 (one)"
    assert found.stages() == {Good.id: Good, Tune.id: Tune}


def test_a_group_of_stages_is_offered_by_kdkit() -> None:
    assert registry().provider("together").name == "kdkit"


def test_two_offers_of_one_id_are_a_conflict_that_names_both() -> None:
    found = registry(("one", Good), ("other", Other), ("other", Tune))
    with pytest.raises(KdError, match=r"prune test-registry-good is offered by kdkit-one 0.1 \(one\) and by kdkit-other 0.1 \(other\)"):
        found.find(Good.id)
    assert found.stages() == {Tune.id: Tune}


def test_an_unknown_technique_names_the_nearest_one_and_the_plugins_that_are_down() -> None:
    found = registry(("one", Good), plugins=(Plugin("gone", status="broken", reason="no torch"),))
    with pytest.raises(KdError, match="no technique 'test-registry-god' in prune") as caught:
        found.find("prune.test-registry-god")
    assert caught.value.hints == (
        "did you mean test-registry-good?",
        "%kd list prune shows: test-registry-good",
        "plugin gone may offer more, but is broken: no torch  (%kd plugins)",
    )


def test_an_unknown_family_names_the_nearest_one() -> None:
    with pytest.raises(KdError, match="no family 'prun'") as caught:
        registry(("one", Good), ("one", Tune)).find("prun.mine")
    assert caught.value.hints == ("did you mean prune?", "families: prune, tune")


def test_a_class_that_no_decorator_offers_is_explained() -> None:
    with pytest.raises(KdError, match="prune test-registry-bare is defined but not offered") as caught:
        registry().find(Bare.id)
    assert "has no apply(self, model, context)" in caught.value.hints[0]
    assert caught.value.hints[1] == 'put @kdkit.stage("prune.test-registry-bare") above class Bare'


def test_a_blocked_plugin_that_has_the_stage_is_the_reason_before_a_class_of_that_id() -> None:
    blocked = Plugin("mine", status="blocked", reason="blocked in this session", offers=(Bare.id,))
    with pytest.raises(KdError, match="no family 'prune'") as caught:
        registry(plugins=(blocked,)).find(Bare.id)
    assert "plugin mine may offer more, but is blocked" in caught.value.hints[-1]


def test_a_cell_offers_a_stage_and_replaces_it() -> None:
    found = registry()
    found.offer(Good)
    found.offer(Other)
    assert found.find(Good.id) is Other
    assert found.provider(Good.id).name == "notebook"


@pytest.mark.parametrize(("stage", "message"), [(Good, "prune.test-registry-good is offered by kdkit-one 0.1 .* already"), (Bare, "has no apply")])
def test_a_cell_can_offer_neither_an_installed_id_nor_an_invalid_stage(stage, message) -> None:
    found = registry(("one", Other))
    with pytest.raises(KdError, match=message):
        found.offer(stage)
    assert found.stages() == {Other.id: Other}


def test_plugins_are_asked_once_until_the_registry_forgets() -> None:
    asked = []

    def contributions():
        asked.append(1)
        return [("one", Good)]

    found = StageRegistry(contributions, {}, Notebook())
    found.stages(), found.find(Good.id)
    assert len(asked) == 1
    found.forget()
    found.stages()
    assert len(asked) == 2


class Named(Good):
    """A technique with other names."""

    id: ClassVar = "prune.test-registry-named"
    known_as: ClassVar = ("Best-Paper", "the old name")


class Derived(Named):
    """A technique derived from it."""

    id: ClassVar = "prune.test-registry-derived"


@pytest.mark.parametrize("name", ["Best-Paper", "bestpaper", "BEST PAPER", "best_paper", "the-old-name"])
def test_a_technique_is_known_by_its_other_names_however_they_are_spelled(name):
    known = registry(("one", Named), ("one", Derived), ("one", Good))
    assert known.known_as(name) == [Named.id], "a technique derived from it has names of its own"
    with pytest.raises(KdError, match="is prune test-registry-named") as caught:
        known.find(f"prune.{name}")
    assert "%kd prune test-registry-named" in caught.value.hints


def test_names_that_are_no_texts_are_refused():
    class Wrong(Good):
        """Names in the wrong form."""

        id: ClassVar = "prune.test-registry-wrong"
        known_as: ClassVar = "RKD"

    assert any("known_as is 'RKD'" in problem for problem in validate_stage(Wrong))

"""Pipelines: reading, judging by traits, bridging, recipes."""

from typing import ClassVar

import pytest
import yaml

from kdkit import KdError, Stage, TrainStage, Trait, param
from kdkit.pipelines.pipeline import Pipeline
from kdkit.pipelines.text import read_stage
from kdkit.training.together import Together

FLOAT = frozenset({Trait.FLOAT_WEIGHTS, Trait.TRAINABLE, Trait.FREE_STRUCTURE})


class Pack(Stage):
    """Pack the weights."""

    id: ClassVar = "quantize.test-pack"
    requires: ClassVar = {Trait.FLOAT_WEIGHTS}
    forbids: ClassVar = {Trait.MASKS_PENDING}
    adds: ClassVar = {Trait.PACKED_WEIGHTS}
    removes: ClassVar = {Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    bits: int = param(8, "bits a weight", ge=1, le=8)

    def apply(self, model, context):
        return model


class Mask(Stage):
    """Mask weights."""

    id: ClassVar = "prune.test-mask"
    requires: ClassVar = {Trait.FREE_STRUCTURE}
    adds: ClassVar = {Trait.MASKS_PENDING}
    removes: ClassVar = {Trait.FREE_STRUCTURE}

    def apply(self, model, context):
        return model


class Fold(Stage):
    """Fold the masks in."""

    id: ClassVar = "prune.test-fold"
    requires: ClassVar = {Trait.MASKS_PENDING}
    adds: ClassVar = {Trait.FREE_STRUCTURE}
    removes: ClassVar = {Trait.MASKS_PENDING}
    bridge: ClassVar = True

    def apply(self, model, context):
        return model


class Tune(TrainStage):
    """Train."""

    id: ClassVar = "tune.test-tune"


@pytest.fixture(autouse=True)
def stages(offered):
    offered(Pack, Mask, Fold, Tune)


def test_lines_become_stages_and_stages_become_the_same_lines():
    text = "prune test-mask\nquantize test-pack --bits 4"
    assert Pipeline.from_lines(text + "   # and that is all\n\n# no more").lines() == text


def test_a_wrong_line_is_named_by_its_number():
    with pytest.raises(KdError, match=r"line 3: quantize test-pack: --bits 9"):
        Pipeline.from_lines("prune test-mask\n\nquantize test-pack --bits 9")


def test_an_order_that_traits_forbid_is_refused_with_the_culprit_and_the_remedy():
    with pytest.raises(KdError, match=r"prune test-mask \(step 2\) needs a structure that may be changed, which quantize test-pack \(step 1\) took away") as caught:
        Pipeline.from_lines("quantize test-pack\nprune test-mask").plan(FLOAT)
    assert "put prune test-mask before quantize test-pack (step 1)" in caught.value.hints


def test_what_the_model_itself_lacks_is_refused_without_a_culprit():
    with pytest.raises(KdError, match="needs float weights, which the model has not"):
        Pipeline.of(Pack()).plan({Trait.PACKED_WEIGHTS})


def test_a_bridge_is_inserted_visibly_where_a_later_stage_needs_it():
    steps = Pipeline.from_lines("prune test-mask\nquantize test-pack").plan(FLOAT)
    assert [(step.stage.id, step.inserted) for step in steps] == [("prune.test-mask", False), ("prune.test-fold", True), ("quantize.test-pack", False)]
    assert steps[-1].traits == {Trait.TRAINABLE, Trait.PACKED_WEIGHTS}


def test_no_bridge_is_inserted_where_none_is_needed():
    assert len(Pipeline.of(Pack()).plan(FLOAT)) == 1


def test_traits_of_a_strangers_own_words_are_checked_too(offered):
    class Sort(Mask):
        """Sort."""

        id: ClassVar = "prune.test-sort"
        adds: ClassVar = {"sorted"}
        removes: ClassVar = ()

    class Search(Mask):
        """Search."""

        id: ClassVar = "prune.test-search"
        requires: ClassVar = {"sorted"}

    offered(Sort, Search)
    Pipeline.from_lines("prune test-sort\nprune test-search").plan(FLOAT)
    with pytest.raises(KdError, match="needs sorted, which the model has not"):
        Pipeline.from_lines("prune test-search").plan(FLOAT)


def test_together_is_one_step_with_the_union_of_what_its_stages_declare():
    group = Pipeline.from_lines("together:\n    tune test-tune --epochs 2\n    tune test-tune\nquantize test-pack")
    assert isinstance(group.stages[0], Together)
    assert group.stages[0].requires == {Trait.TRAINABLE}
    assert group.stages[0].required_inputs().train
    assert Pipeline.from_lines(group.lines()).lines() == group.lines()
    assert Pipeline.from_data(group.data()) == group


@pytest.mark.parametrize("text", ["together:", "together:\n  tune test-tune", "together:\n  tune test-tune\n  prune test-mask"])
def test_together_wants_two_stages_that_train(text):
    with pytest.raises(KdError, match="together"):
        Pipeline.from_lines(text)


def test_a_recipe_comes_back_as_the_same_pipeline(tmp_path):
    pipeline = Pipeline.from_lines("prune test-mask\nquantize test-pack --bits 2", "small")
    pipeline.save(tmp_path / "small.yaml")
    assert Pipeline.load(tmp_path / "small.yaml") == pipeline
    assert yaml.safe_load((tmp_path / "small.yaml").read_text())["steps"][1] == {"stage": "quantize.test-pack", "version": 1, "options": {"bits": 2}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "not a kdkit recipe"),
        ({"kdkit": 99, "steps": []}, "format 99"),
        ({"kdkit": 1, "steps": [3]}, "step 1 is not a stage"),
        ({"kdkit": 1, "steps": [{"stage": "prune.nothing"}], "distributions": {"kdkit-extra": "3"}}, "no technique 'nothing'"),
        ({"kdkit": 1, "steps": [{"stage": "quantize.test-pack", "options": {"bits": 99}}]}, "--bits 99"),
        ({"kdkit": 1, "steps": [{"stage": "quantize.test-pack", "version": 7}]}, "of version 7; version 1 is installed"),
    ],
)
def test_a_recipe_that_can_not_be_read_says_why(data, message):
    with pytest.raises(KdError, match=message):
        Pipeline.from_data(data)


def test_a_recipe_names_the_distributions_it_was_made_with():
    with pytest.raises(KdError) as caught:
        Pipeline.from_data({"kdkit": 1, "steps": [{"stage": "prune.nothing"}], "distributions": {"kdkit-extra": "3"}})
    assert "the recipe was made with kdkit-extra 3" in caught.value.hints


@pytest.mark.parametrize("words", [[], ["prune"], ["--prune", "x"], ["prune", "--layers"]])
def test_words_that_are_no_stage_are_refused(words):
    with pytest.raises(KdError, match="is not a stage"):
        read_stage(words)


def test_what_one_step_did_to_several_traits_is_reported_at_once_and_a_bridge_is_laid_to_whom_it_was_put_in_for():
    with pytest.raises(KdError) as caught:
        Pipeline.from_lines("quantize static\nprune channels").plan(FLOAT)
    assert caught.value.message.count("quantize static (step 1) took away") == 1
    assert "convert onnx" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("RKD --epochs 3", "RKD is distill relations", "%kd distill relations --epochs 3"),
        ("distill kd", "kd is distill soft", "%kd distill soft"),
        ("deep mutual learning --layers 'a b'", "deep mutual learning is distill mutual", "%kd distill mutual --layers 'a b'"),
        ("FitNets", "FitNets is distill hints", "%kd distill hints"),
        ("PTQ", "PTQ is quantize dynamic or quantize static", "%kd quantize static"),
    ],
)
def test_a_line_with_a_technique_s_name_in_papers_says_what_it_is_called_here(line, message, hint):
    with pytest.raises(KdError, match=f"^{message}\n") as caught:
        Pipeline.from_lines(line)
    assert hint in caught.value.hints

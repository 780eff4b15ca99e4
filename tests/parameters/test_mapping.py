"""`dict[str, X]` parameters: on a line, in Python, in a recipe, and what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

import kdkit
from kdkit.errors import KdError
from kdkit.parameters.command_line import read_options, write_values
from kdkit.parameters.description import bounds, holds
from kdkit.parameters.mapping import FrozenDict, differ, read_entry, write_entry
from kdkit.parameters.tokenizer import Reference, split
from kdkit.pipelines.pipeline import Pipeline
from kdkit.stages.function_stage import _of_function

TEXT = some.text(alphabet=some.one_of(some.sampled_from("=\\.*- '\"{}$#"), some.characters(codec="utf-8")), max_size=8)

FACTORS = kdkit.param({}, "factor of each layer's weights", gt=0)


class Mixed(kdkit.Stage):
    """Another number of bits for each layer."""

    id: ClassVar = "tune.test-mixed"
    bits: dict[str, int] = kdkit.param({}, "bits of the weights, by layer", ge=2, le=8, names="layers")
    modes: dict[str, Literal["fast", "slow"]] = kdkit.param({"encoder": "slow"}, "how a block is computed")
    teachers: dict[str, float] = kdkit.param({}, "weight of each teacher", ge=0, names="model")

    def apply(self, model: Any, context: Any) -> None:
        """Leave the model alone."""


def read(line: str) -> dict[str, Any]:
    return read_options(Mixed, split(line), "tune test-mixed")


def refusal(**values: Any) -> str:
    with pytest.raises(KdError) as caught:
        Mixed.build("tune test-mixed", values)
    return str(caught.value)


# words


@given(TEXT, TEXT)
def test_any_name_and_any_text_come_back_from_their_word(name, value):
    assert read_entry(write_entry(name, value)) == (name, value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--bits encoder.*=4 head=8", {"bits": {"encoder.*": 4, "head": 8}}),
        ("--bits=encoder.*=4 --bits head=8", {"bits": {"encoder.*": 4, "head": 8}}),
        ("--bits 'a layer=4' \"it's=8\"", {"bits": {"a layer": 4, "it's": 8}}),
        (r"--bits re:layer\.\d+=4 x\=y=8", {"bits": {r"re:layer\.\d+": 4, "x=y": 8}}),
        ("--bits head=4 head=8", {"bits": {"head": 8}}),
        ("--modes head=fast --no-bits", {"modes": {"head": "fast"}, "bits": {}}),
    ],
)
def test_a_line_maps_names_to_values(line, expected):
    assert read(line) == expected


def test_the_order_of_patterns_is_that_of_the_line():
    assert list(read("--bits *=4 head=8")["bits"]) == ["*", "head"]
    assert Mixed(bits={"*": 4, "head": 8}).line() == "tune test-mixed --bits '*=4' head=8"
    assert Mixed(bits={"head": 8, "*": 4}) != Mixed(bits={"*": 4, "head": 8})


def test_an_expression_within_a_mapping_is_written_as_an_expression():
    assert write_values(Mixed, {"bits": {Reference("plan"): None, "head": 8}}) == ["--bits", "{plan}", "head=8"]


# errors


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--bits head", "--bits 'head' is not NAME=VALUE\n  hint: write --bits head=VALUE"),
        ("--modes head", "hint: write --modes head=fast | slow"),
        ("--bits =4", "--bits '=4' is not NAME=VALUE"),
        ("--bits head=many", "--bits head='many' is not a whole number"),
        ("--bits", "--bits needs a value"),
    ],
)
def test_a_word_that_is_no_item_is_refused_by_option_name_and_what_is_allowed(line, message):
    with pytest.raises(KdError) as caught:
        read(line)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": {"head": 9}}, "tune test-mixed: --bits head=9: input should be less than or equal to 8"),
        ({"bits": {"head": 1}}, "--bits head=1: input should be greater than or equal to 2"),
        ({"bits": {"head": "x"}}, "--bits head='x': input should be a valid integer"),
        ({"bits": {"head": None}}, "--bits head has no value; write head=VALUE"),
        ({"bits": {"": 4}}, "a name is empty"),
        ({"bits": 4}, "--bits 4: input should be a valid dictionary"),
        ({"modes": {"head": "hard"}}, "--modes head='hard': input should be 'fast' or 'slow'"),
    ],
)
def test_a_value_that_is_ruled_out_is_refused_by_option_name_and_what_is_allowed(values, message):
    assert message in refusal(**values)
    assert "hint: --" in refusal(**values)


# values


def test_a_stage_s_mapping_can_t_be_changed():
    bits = Mixed(bits={"head": 8}).bits
    for change in (lambda: bits.update(head=4), lambda: bits.__setitem__("head", 4), lambda: bits.pop("head"), bits.clear, lambda: bits.__ior__({"a": 1})):
        with pytest.raises(TypeError, match="can't be changed"):
            change()
    assert bits == {"head": 8}


def test_a_mapping_given_and_changed_later_leaves_the_stage_alone():
    given = {"head": 8}
    stage = Mixed(bits=given)
    given["head"] = 2
    assert stage.bits["head"] == 8


def test_equal_stages_hash_alike_and_copies_are_equal():
    stage = Mixed(bits={"head": 8, "*": 4})
    assert hash(stage) == hash(Mixed(bits={"head": 8, "*": 4}))
    assert copy.deepcopy(stage) == stage == pickle.loads(pickle.dumps(stage))
    assert type(pickle.loads(pickle.dumps(stage)).bits) is FrozenDict


def test_the_order_of_items_is_a_difference():
    assert differ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not differ(FrozenDict(a=1), {"a": 1})
    assert FrozenDict(a=1, b=2) != FrozenDict(b=2, a=1)


def test_only_what_differs_from_the_default_is_written():
    assert Mixed().line() == "tune test-mixed"
    assert Mixed(modes={}).line() == "tune test-mixed --no-modes"
    assert Mixed(modes={"encoder": "slow"}).changed() == {}


# elsewhere


def test_a_recipe_holds_a_mapping_and_gives_the_same_stage(offered, tmp_path):
    offered(Mixed)
    pipeline = Pipeline.of(Mixed(bits={"encoder.*": 4, "it's: 'x'": 8}, teachers={"big": 0.5}))
    path = pipeline.save(tmp_path / "mixed.yaml")
    assert yaml.safe_load(path.read_text())["steps"][0]["options"] == {"bits": {"encoder.*": 4, "it's: 'x'": 8}, "teachers": {"big": 0.5}}
    assert Pipeline.load(path) == pipeline
    assert Pipeline.from_lines(pipeline.lines()) == pipeline


def test_the_keys_of_a_mapping_that_names_objects_are_the_objects():
    assert list(Mixed(teachers={"big": 0.5, "small": 0.1}).named_objects()) == [("teachers", "model", "big"), ("teachers", "model", "small")]
    assert list(Mixed(bits={"encoder": 4}).named_objects()) == []


def test_help_says_what_is_on_both_sides():
    assert holds(Mixed, "bits") == "pattern of module names=whole number, several"
    assert holds(Mixed, "modes") == "name=fast | slow, several"
    assert bounds(Mixed, "bits") == "≥ 2, ≤ 8"


def test_a_function_may_take_a_mapping():
    def scaled(model, context, *, factors: dict[str, float] = FACTORS):
        """Scale layers."""

    made = _of_function(scaled, "tune.test-function-of-mapping", {})
    assert made(factors={"head": 0.5}).line() == "tune test-function-of-mapping --factors head=0.5"

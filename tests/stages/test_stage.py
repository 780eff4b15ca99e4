"""Stages written for the names of kdkit 0.1 still work, with a warning."""

from __future__ import annotations

from typing import ClassVar

import pytest

from kdkit import KdError, Needs, Stage, param
from kdkit.pipelines.pipeline import Pipeline

IGNORE = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Current(Stage):
    """A stage with the names of today."""

    id: ClassVar = "tune.current"
    teacher: str = param("teacher", "a model", names="model")

    def apply(self, model, context):
        """Leave the model alone."""

    def required_inputs(self):
        return Needs(train=True)


def older():
    """A class that overrides the old names on top of one that overrides the new ones."""

    class Older(Current):
        """A stage with the names of kdkit 0.1."""

        def needed(self):
            return super().needed() | Needs(labels=True)

        def references(self):
            return [*super().references(), ("extra", "object", "thing")]

        @classmethod
        def offers(cls, parameter):
            return [parameter]

    return Older


@IGNORE
def test_an_override_under_the_old_name_is_honoured_and_warned_about():
    with pytest.warns(DeprecationWarning, match="Older.needed is now called required_inputs"):
        stage = older()()
    assert stage.required_inputs() == Needs(train=True, labels=True)
    assert list(stage.named_objects()) == [("teacher", "model", "teacher"), ("extra", "object", "thing")]
    assert list(stage.suggestions("teacher")) == ["teacher"]


@IGNORE
def test_a_subclass_with_the_new_name_extends_an_override_under_the_old_one():
    class Newest(older()):
        """A stage with the new names again."""

        def required_inputs(self):
            return super().required_inputs() | Needs(teacher=True)

    assert Newest().required_inputs() == Needs(train=True, labels=True, teacher=True)


def test_calls_by_the_old_names_warn_and_answer():
    with pytest.warns(DeprecationWarning, match="Current.needed is now called required_inputs"):
        assert Current().needed() == Needs(train=True)
    with pytest.warns(DeprecationWarning, match="references is now called named_objects"):
        assert list(Current().references()) == [("teacher", "model", "teacher")]
    with pytest.warns(DeprecationWarning, match="offers is now called suggestions"):
        assert list(Current.offers("teacher")) == []


def test_a_parameter_declared_with_refers_names_an_object():
    with pytest.warns(DeprecationWarning, match="refers=.* is now called names="):
        field = param("teacher", "a model", refers="model")
    assert field.json_schema_extra == {"names": "model"}


@pytest.mark.parametrize("name", ["calibration", "train", "eval", "validation", "example", "tokenizer"])
def test_data_on_the_line_of_a_stage_is_answered_with_the_line_that_sets_it(name):
    with pytest.raises(KdError, match=f"quantize static has no option --{name}") as caught:
        Pipeline.from_lines(f"quantize static --{name} x")
    assert caught.value.hints[0] == f"{name} belongs to the session, not to a stage: %kd set --{name} {{{name}}}"
    assert not any("did you mean" in hint for hint in caught.value.hints)

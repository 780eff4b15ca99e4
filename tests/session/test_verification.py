"""Verification: a stage that promises to keep the outputs and does not is refused, and the session stays as it was."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from kdkit import KdError, Session, Stage, param
from tests.fixtures import zoo


class Promise(Stage):
    """Scale the last layer, and promise to keep the outputs."""

    id: ClassVar = "convert.test-promise"
    keeps_values: ClassVar = True
    factor: float = param(1.5, "what the last layer is multiplied by")

    def apply(self, model, context):
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight.data.mul_(self.factor)
        last.bias.data.mul_(self.factor)


class Half(Stage):
    """Cast the weights to half precision inside, and promise to keep the outputs."""

    id: ClassVar = "convert.test-half"
    keeps_values: ClassVar = True
    dtype: str = param("bfloat16", "of the weights")

    def apply(self, model, context):
        return Cast(model, getattr(torch, self.dtype))


class Cast(nn.Module):
    def __init__(self, model, dtype):
        super().__init__()
        self.inner, self.dtype = model.to(dtype), dtype

    def forward(self, x):
        return self.inner(x.to(self.dtype)).float()


class Break(Promise):
    """Return a model that can't be called."""

    id: ClassVar = "convert.test-break"

    def apply(self, model, context):
        return nn.Sequential(model, nn.Linear(999, 3))


@pytest.fixture
def session(offered):
    offered(Promise, Half, Break)
    batch = zoo.batch("mlp")
    return Session(zoo.mlp(), eval=(batch.args[0], batch.labels), measures=("parameters",))


def test_a_broken_promise_is_refused_and_nothing_changes(session):
    before = session.history
    with pytest.raises(KdError, match="promises to keep the outputs, and output differs by 0.5 of its largest value") as caught:
        session.run("convert test-promise")
    assert any("the session is as it was" in hint for hint in caught.value.hints)
    assert session.history is before


@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_a_difference_that_rounding_does_not_explain_is_refused(session, factor):
    with pytest.raises(KdError, match="rounding explains 3e-04"):
        session.run(f"convert test-promise --factor {factor}")


def test_a_difference_within_rounding_is_accepted(session):
    assert session.run("convert test-promise --factor 1.00001").number == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_conversion_to_half_precision_is_measured_by_its_rounding(session, dtype):
    assert session.run(f"convert test-half --dtype {dtype}").number == 1


def test_without_data_the_inputs_are_derived_from_the_model(offered):
    offered(Promise, Break)
    session = Session(zoo.mlp(), measures=("parameters",))
    with pytest.raises(KdError, match="promises to keep the outputs"):
        session.run("convert test-promise")
    with pytest.raises(KdError, match="the result can't be called: a linear layer expects 999 features"):
        session.run("convert test-break")


def test_the_stages_that_kdkit_inserts_promise_to_keep_the_outputs():
    from kdkit import known_stages

    assert [made.id for family in ("convert", "peft") for made in known_stages(family).values() if made.bridge and not made.keeps_values] == []

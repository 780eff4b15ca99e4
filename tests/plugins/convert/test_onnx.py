"""convert onnx: the stage around the export."""

import pytest
import torch

from kdkit import Context, KdError, Trait
from kdkit.backends.onnx.model import OnnxModel
from kdkit.models.traits import traits_of
from kdkit.session.adoption import adopt_data
from kdkit.tasks import Classification
from kdkit_convert.onnx import Onnx
from tests.fixtures import zoo
from tests.fixtures.onnx_zoo import exported


def context(name: str) -> Context:
    batch = zoo.batch(name)
    return Context(task=Classification(), objects={"train": adopt_data([batch])}, stage="convert onnx")


@pytest.mark.slow
def test_it_turns_a_torch_model_into_an_onnx_one_that_answers_alike():
    model, given = zoo.cnn(), context("cnn")
    made = Onnx().apply(model, given)
    assert isinstance(made, OnnxModel)
    torch.testing.assert_close(zoo.batch("cnn").call(made), zoo.batch("cnn").call(model), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_its_traits_are_what_it_declares():
    before, after = traits_of(zoo.mlp()), traits_of(Onnx().apply(zoo.mlp(), context("mlp")))
    assert after == (before - Onnx.removes) | Onnx.adds
    assert Trait.ONNX in Onnx.forbids
    assert Onnx.bridge


@pytest.mark.slow
def test_attention_can_be_kept_as_the_model_has_it():
    kept = Onnx(attention="keep").apply(zoo.tiny_bert(), context("tiny_bert"))
    assert Onnx().attention == "eager"
    assert "IsNaN" not in {node.op_type for node in exported("tiny_bert").graph().graph.node}
    assert "IsNaN" in {node.op_type for node in kept.graph().graph.node}, "fused attention guards against rows that are wholly masked"


@pytest.mark.slow
def test_the_operator_set_can_be_chosen():
    graph = Onnx(opset=18).apply(zoo.mlp(), context("mlp")).graph()
    assert [item.version for item in graph.opset_import if not item.domain] == [18]


def test_without_any_data_it_says_what_to_give():
    with pytest.raises(KdError, match="needs one batch of inputs"):
        Onnx().apply(zoo.mlp(), Context(task=Classification(), stage="convert onnx"))

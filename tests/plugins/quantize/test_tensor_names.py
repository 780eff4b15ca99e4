"""Inputs and outputs of any names are quantized: the quantizer derives names of its own from them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdkit import Batch, Context, Stage
from kdkit.backends.onnx import OnnxModel, to_onnx
from kdkit.session.adoption import adopt_data
from kdkit.tasks import Classification
from kdkit_quantize.dynamic import Dynamic
from kdkit_quantize.static import Static
from kdkit_quantize.tensor_names import neutralize_names, restore_names

DERIVED = ("scale", "zero_point", "quantized", "QuantizeLinear_Output", "DequantizeLinear_Output")
"""What the quantizer appends to a tensor's name."""


class Sum(nn.Module):
    """A linear layer of x, plus the other inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def total(self, x: Tensor, other: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))) + 10 * other


def net_with_input(name: str) -> nn.Module:
    """A net whose forward takes `x`, and a second input of this name."""
    space: dict = {}
    exec(f"def forward(self, x, {name}):\n    return self.total(x, {name})", space)
    torch.manual_seed(0)
    return type("Named", (Sum,), {"forward": space["forward"]})().eval()


def quantized(stage: Stage, model: OnnxModel, batch: Batch) -> OnnxModel:
    return stage.apply(model, Context(task=Classification(), objects={"calibration": adopt_data([batch])}, stage="quantize"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [Dynamic(), Static(form="operators"), Static(form="pairs")], ids=lambda stage: stage.line())
@pytest.mark.parametrize("name", [f"x_{suffix}" for suffix in DERIVED] + ["t0_scale"])
def test_an_input_whose_name_the_quantizer_would_derive_from_another_one_stays_that_input(stage, name):
    net = net_with_input(name)
    batch = Batch((torch.randn(16, 8), torch.randn(16, 4)))
    made = quantized(stage, to_onnx(net, batch), batch)
    assert [item.name for item in made.graph().graph.input] == ["x", name]
    with torch.no_grad():
        torch.testing.assert_close(made(*batch.args), net(*batch.args), atol=0.3, rtol=0.02)


def test_names_come_back_where_a_derived_name_is_that_of_an_output():
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("a", "t0_scale")]
    graph = helper.make_graph([helper.make_node("Abs", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["t0_scale"])], "g", value[:1], value[1:])
    model = helper.make_model(graph)
    names = neutralize_names(model)
    assert sorted(names.values()) == ["t0", "t1", "t2"]
    model.graph.node.insert(0, helper.make_node("Exp", ["t0"], ["t0_scale"]))  # as the quantizer does
    restored = restore_names(model, names).graph
    assert ([item.name for item in restored.input], [item.name for item in restored.output]) == (["a"], ["t0_scale"])
    assert len({name for node in restored.node for name in node.output}) == 3

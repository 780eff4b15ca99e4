"""What a model does with its layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.models.layer_usage import linear_kinds, trace_layer_usage
from tests.fixtures import zoo


def linear(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, linear_kinds())}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "heads"), [("mlp", {"head"}), ("cnn", {"head"}), ("lstm", {"head"}), ("tiny_bert", {"classifier"}), ("tiny_llama", {"lm_head"}), ("tiny_gpt2", {"lm_head"})]
)
def test_the_head_is_what_gives_the_output(name, heads):
    model = zoo.MODELS[name]()
    seen = trace_layer_usage(model, zoo.batch(name), linear(model))
    assert {layer for layer, use in seen.items() if use.gives_output} == heads
    assert all(use.called and not use.read_by for use in seen.values())


def test_a_head_whose_output_is_only_looked_at_differently_still_gives_the_output():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6), nn.Unflatten(1, (2, 3))).eval()
    seen = trace_layer_usage(model, zoo.Batch((torch.randn(2, 4),)), linear(model))
    assert [use.gives_output for use in seen.values()] == [False, True]


def test_tied_weights_and_shared_modules_are_reported():
    model = zoo.tiny_gpt2()
    assert trace_layer_usage(model, zoo.batch("tiny_gpt2"), {"lm_head": model.lm_head})["lm_head"].tied_to == ("transformer.wte",)
    shared = nn.Linear(4, 4)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    assert trace_layer_usage(twice, zoo.Batch((torch.randn(2, 4),)), {"0": shared})["0"].places == ("0", "2")


def test_a_layer_that_is_not_run_is_not_called():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "spare": nn.Linear(4, 4)})
    model.forward = lambda x: model["used"](x)
    seen = trace_layer_usage(model, zoo.Batch((torch.randn(2, 4),)), linear(model))
    assert [use.called for use in seen.values()] == [True, False]


def test_the_class_of_whoever_reads_a_weight_is_named():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x.to(self.inner.weight.dtype))

    model = Reader()
    use = trace_layer_usage(model, zoo.Batch((torch.randn(2, 4),)), {"inner": model.inner})["inner"]
    assert (use.called, use.read_by) == (True, {"Reader"})


def test_the_model_is_left_as_it_was_even_when_the_batch_does_not_fit():
    model = zoo.mlp().train()
    with pytest.raises(RuntimeError):
        trace_layer_usage(model, zoo.Batch((torch.randn(2, 3),)), linear(model))
    assert {type(layer) for layer in linear(model).values()} == {nn.Linear}
    assert all(module.training for module in model.modules())

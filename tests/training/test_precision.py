"""Half-precision models: they train, or the reason why not comes before the first step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit_tune.finetune import Finetune


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).to(dtype).eval()


def context(dtype: torch.dtype, scale: float = 1.0) -> Context:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    return Context(Classification(), objects={"train": adopt_data(((x * scale).to(dtype), x[:, :3].argmax(1)), 8)})


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "optimizer"), [(torch.bfloat16, "adamw"), (torch.bfloat16, "adam"), (torch.bfloat16, "sgd"), (torch.float16, "sgd")])
def test_what_can_train_trains_and_keeps_its_dtype(dtype: torch.dtype, optimizer: str) -> None:
    model = net(dtype)
    Finetune(epochs=3, optimizer=optimizer, learning_rate=0.05).apply(model, context(dtype))
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert not torch.equal(model[3].weight, net(dtype)[3].weight)


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
@pytest.mark.parametrize("layers", [(), ("3",)])
def test_adam_on_float16_weights_is_refused_with_the_reason_and_what_works(optimizer: str, layers: tuple[str, ...]) -> None:
    with pytest.raises(KdError, match=f"{optimizer} can't train float16 weights such as {'3' if layers else '0'}.weight") as caught:
        Finetune(optimizer=optimizer, layers=layers).apply(net(torch.float16), context(torch.float16))
    assert "--optimizer sgd" in caught.value.hints


def test_an_overflow_in_float16_is_named_as_one() -> None:
    with pytest.raises(KdError, match="not finite") as caught:
        Finetune(optimizer="sgd", learning_rate=1e4, epochs=3).apply(net(torch.float16), context(torch.float16, 1000.0))
    assert any("float16 holds nothing above 65504" in hint for hint in caught.value.hints)


def test_a_precision_and_weights_of_another_one_are_refused() -> None:
    with pytest.raises(KdError, match="--precision bf16 computes with float32 weights, and 0.weight is float16"):
        Finetune(optimizer="sgd", precision="bf16").apply(net(torch.float16), context(torch.float16))

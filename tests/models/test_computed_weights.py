"""Weights that a module computes at each call are found, whoever computes them, and named with the line that makes them plain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from kdkit.models import computed_tensors, untouchable


def computed_by_code(layer: nn.Module) -> nn.Module:
    weight = layer._parameters.pop("weight")
    layer.raw = weight
    layer.weight = weight * 2
    layer.register_forward_pre_hook(lambda module, args: setattr(module, "weight", module.raw * 2))
    return layer


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "mask of the bias": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
    "several masks": lambda layer: prune.ln_structured(prune.l1_unstructured(layer, "weight", 0.5), "weight", 0.5, 2, 0),
    "code": computed_by_code,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [lambda: nn.Linear(4, 4), lambda: nn.Conv2d(4, 4, 3)], ids=["linear", "convolution"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_remedy_makes_the_layer_plain_and_keeps_what_it_computes(kind: str, layer: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    made = KINDS[kind](layer()).eval()
    x = torch.randn(2, 4) if isinstance(made, nn.Linear) else torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        before = made(x)
    found = computed_tensors(made)
    assert len(found) == 1
    assert untouchable({"it": made})["it"].count(found[0].remedy) == 1
    if kind == "code":
        made._forward_pre_hooks.clear()
    exec(found[0].remedy, {"torch": torch, "layer": made})
    assert computed_tensors(made) == []
    assert untouchable({"it": made}) == {}
    torch.testing.assert_close(made(x), before)

"""New random weights for a pruned structure, to compare it with the weights that it inherits."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from kdkit import KdError
from kdkit_prune.groups import is_conv1d
from kdkit_prune.masks import mask_of
from kdkit_prune.norm_statistics import norms_with_statistics


def reinitialize(model: nn.Module, seed: int) -> None:
    """Give every weight a new random value, as its module's class initializes it, and start the statistics of norms again; in place.

    "Rethinking the Value of Network Pruning" (Liu et al., 2019, arXiv:1810.05270) asks for this comparison: trained for as long, a pruned
    structure with random weights is often as good as with inherited ones. Masks stay; pruned weights stay zero.

    Raises:
        KdError: a module has parameters of its own and no way to initialize them; the model is unchanged then.

    >>> layer = nn.Linear(2, 2)
    >>> before = layer.weight.clone()
    >>> reinitialize(layer, seed=0)
    >>> torch.equal(layer.weight, before)
    False
    """
    modules = [(name, module) for name, module in model.named_modules() if "parametrizations" not in name.split(".")]
    initializers = {name: _initializer(module) for name, module in modules if _own_parameters(module)}
    if lacking := [name or "the model" for name, initialize in initializers.items() if initialize is None]:
        raise KdError(
            f"--reinit: {', '.join(lacking[:4])} {'hold' if len(lacking) > 1 else 'holds'} weights that no reset_parameters() initializes",
            "give the module's class a reset_parameters() method, or leave out --reinit",
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _without_masks(model):
        torch.manual_seed(seed)
        for name, initialize in initializers.items():
            if initialize is not None:
                initialize(model.get_submodule(name))
        for norm in norms_with_statistics(model):
            norm.reset_running_stats()


@contextlib.contextmanager
def _without_masks(model: nn.Module) -> Iterator[None]:
    """Masked weights as ordinary parameters while the context lasts: what initializes a weight writes into it."""
    masked = [(module, key, mask) for module in model.modules() for key in _parametrized(module) if (mask := mask_of(module, key)) is not None]
    for module, key, _ in masked:
        parametrize.remove_parametrizations(module, key, leave_parametrized=True)
    try:
        yield
    finally:
        for module, key, mask in masked:
            parametrize.register_parametrization(module, key, mask)


def _parametrized(module: nn.Module) -> list[str]:
    return list(module.get_submodule("parametrizations")._modules) if parametrize.is_parametrized(module) else []


def _own_parameters(module: nn.Module) -> bool:
    return bool(_parametrized(module)) or any(weight is not None for weight in module._parameters.values())


def _initializer(module: nn.Module) -> Callable[[nn.Module], object] | None:
    """What gives a module its first values: its own method, or the published start of norms and of GPT-2's linear layers."""
    if any(mask_of(module, key) is None for key in _parametrized(module)):
        return None
    if hasattr(module, "reset_parameters"):
        return operator.methodcaller("reset_parameters")
    if type(module).__name__.endswith("Norm") and all(weight is None or weight.dim() == 1 for weight in module._parameters.values()):
        return _start_norm
    return _start_conv1d if is_conv1d(module) else None


def _start_norm(norm: nn.Module) -> None:
    for name, weight in norm.named_parameters(recurse=False):
        weight.fill_(0.0 if name == "bias" else 1.0)


def _start_conv1d(layer: nn.Module) -> None:
    nn.init.normal_(layer.get_parameter("weight"), std=0.02)
    nn.init.zeros_(layer.get_parameter("bias"))

"""Computed tensors: weights that a module computes from other tensors at each call, through a parametrization or a hook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class ComputedTensor(NamedTuple):
    """A tensor that a module computes at each call.

    Attributes:
        name: of the tensor in its module.
        by: what computes it.
        remedy: the line that makes it an ordinary parameter with its present value; the module is `layer`.
    """

    name: str
    by: str
    remedy: str


def computed_tensors(module: nn.Module) -> list[ComputedTensor]:
    """The weights that a module computes at each call, so that a stage can't rewrite them in place; its children are not inspected.

    >>> from torch.nn.utils import prune
    >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    >>> computed_tensors(layer)[0].by, computed_tensors(layer)[0].remedy
    ('weight_norm', "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')")
    >>> computed_tensors(prune.l1_unstructured(nn.Linear(2, 2), "weight", 0.5))[0].remedy
    "torch.nn.utils.prune.remove(layer, 'weight')"
    >>> computed_tensors(nn.Linear(2, 2))
    []
    """
    found = {each.name: each for each in (*_by_parametrization(module), *_by_hook(module))}
    for name in ("weight", "bias"):
        if name not in found and isinstance(vars(module).get(name), torch.Tensor):
            found[name] = ComputedTensor(name, "code of the model", f"layer.{name} = torch.nn.Parameter(layer.__dict__.pop({name!r}).detach())")
    return list(found.values())


def _by_parametrization(module: nn.Module) -> Iterator[ComputedTensor]:
    parametrizations: Any = module._modules.get("parametrizations")
    if parametrizations is None or not parametrize.is_parametrized(module):
        return
    for name, chain in parametrizations.items():
        by = " and ".join(_PARAMETRIZATIONS.get(type(each).__name__, type(each).__name__) for each in chain)
        yield ComputedTensor(name, by, f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})")


_PARAMETRIZATIONS = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm", "_Orthogonal": "orthogonal"}
"""torch's private classes, by the functions that users call."""


def _by_hook(module: nn.Module) -> Iterator[ComputedTensor]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            yield ComputedTensor(hook._tensor_name, "torch.nn.utils.prune", f"torch.nn.utils.prune.remove(layer, {hook._tensor_name!r})")
        elif isinstance(hook, WeightNorm):
            yield ComputedTensor(hook.name, "weight_norm", f"torch.nn.utils.remove_weight_norm(layer, {hook.name!r})")
        elif isinstance(hook, SpectralNorm):
            yield ComputedTensor(hook.name, "spectral_norm", f"torch.nn.utils.remove_spectral_norm(layer, {hook.name!r})")

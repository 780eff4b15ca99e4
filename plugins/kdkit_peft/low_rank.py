"""Low-rank parametrizations: adapters of weights that a model reads directly instead of calling their layer.

`nn.MultiheadAttention` reads its projections, and `nn.TransformerEncoderLayer` in eval mode its linear layers too, so that a wrapper around
them takes no effect. A parametrization changes the weight itself, whoever reads it. peft's own layer for `nn.MultiheadAttention` adds the
adapter to the frozen weight before each call and subtracts it afterwards, which changes the weight by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdkit import KdError, Trait

MATRICES = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Names of the matrices of a linear layer, an embedding or an `nn.MultiheadAttention`."""


class LowRank(nn.Module):
    """A weight W of shape (out, in) becomes W + scale·B·A, where A is (rank, in) and B is (out, rank). B starts at zero.

    A and B have at least float32, because small updates vanish in half precision.

    >>> layer = nn.Linear(3, 2)
    >>> _ = parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, {"r": 1, "lora_alpha": 2.0}))
    >>> torch.equal(layer.weight, layer.parametrizations.weight.original)
    True
    """

    kdkit_traits: ClassVar = frozenset({Trait.ADAPTERS_ATTACHED})

    def __init__(self, weight: Tensor, options: Mapping[str, Any]):
        super().__init__()
        rank = options["r"]
        self.scale: float = options["lora_alpha"] / (math.sqrt(rank) if options.get("use_rslora") else rank)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.lora_A = nn.Parameter(torch.empty(rank, weight.shape[1], dtype=dtype, device=weight.device))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank, dtype=dtype, device=weight.device))
        if options.get("init_lora_weights") == "gaussian":
            nn.init.normal_(self.lora_A, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * (self.lora_B @ self.lora_A)).to(weight.dtype)


def matrices_of(layer: nn.Module) -> list[str]:
    """The names of the matrices that can be parametrized.

    >>> matrices_of(nn.MultiheadAttention(4, 2)), matrices_of(nn.MultiheadAttention(4, 2, kdim=3)), matrices_of(nn.Conv1d(2, 2, 1))
    (['in_proj_weight'], ['q_proj_weight', 'k_proj_weight', 'v_proj_weight'], [])
    """
    return [name for name in MATRICES if (weight := layer._parameters.get(name)) is not None and weight.dim() == 2]


def obstacle(layer: nn.Module, options: Mapping[str, Any]) -> str:
    """Why the weights of a layer that are read directly can't be adapted with these options of `peft.LoraConfig`; an empty string if they can."""
    if not matrices_of(layer):
        return " and would bypass an adapter"
    return ", where --dora has no form" if options["use_dora"] else ", where --dropout has no form" if options["lora_dropout"] else ""


def parametrize_weights(layers: Iterable[nn.Module], options: Mapping[str, Any]) -> int:
    """Let the matrices of `layers` be computed with adapters.

    Args:
        options: of `peft.LoraConfig`.

    Returns:
        The number of adapters.
    """
    count = 0
    for layer in layers:
        for name in matrices_of(layer):
            weight = layer.get_parameter(name)
            flag = weight.requires_grad
            parametrize.register_parametrization(layer, name, LowRank(weight, options))
            layer.get_parameter(f"parametrizations.{name}.original").requires_grad_(flag)
            count += 1
    return count


def fold(model: nn.Module) -> int:
    """Make ordinary parameters, with their present values, of the weights that have low-rank parametrizations.

    Returns:
        The number of weights.

    Raises:
        KdError: an adapter is not finite, or another parametrization uses the same weight.
    """
    places = [(name, module, key) for name, module in model.named_modules() if parametrize.is_parametrized(module) for key in _adapted(module)]
    for name, module, key in places:
        if len(_chain(module, key)) > 1:
            raise KdError(
                f"peft merge: another parametrization uses {key} of {name or 'the model'}, so the adapter can't be merged alone",
                f"torch.nn.utils.parametrize.remove_parametrizations(layer, {key!r}) folds both in",
            )
        if not torch.isfinite(getattr(module, key)).all():
            raise KdError(f"peft merge: the adapter of {key} of {name or 'the model'} holds infinities or NaN", "%kd undo goes back to before the adapters")
    for _, module, key in places:
        parametrize.remove_parametrizations(module, key, leave_parametrized=True)
    return len(places)


def _adapted(module: nn.Module) -> list[str]:
    return [key for key in module.get_submodule("parametrizations")._modules if any(isinstance(each, LowRank) for each in _chain(module, key))]


def _chain(module: nn.Module, key: str) -> list[nn.Module]:
    return list(module.get_submodule(f"parametrizations.{key}").children())

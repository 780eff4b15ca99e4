"""Weight matrices: the weights of a model that can be masked, each seen as a matrix of (outputs, inputs).

The inputs of a convolution are its channels at each position of the kernel, positions first, so that consecutive inputs are channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdkit.models import linear_kinds, select_layers, untouchable, weights_elsewhere
from kdkit_prune.groups import is_conv1d
from kdkit_prune.masks import hold_at_zero, mask_of

ATTENTION_KEYS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Matrices that `nn.MultiheadAttention` holds itself."""


@dataclass(frozen=True)
class WeightMatrix:
    """One weight of a model.

    Attributes:
        name: of its layer; with the tensor's own name where that is not "weight".
        places: the modules that hold the tensor, with its name in each; several for tied weights. The first is the layer itself.
    """

    name: str
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def layer(self) -> nn.Module:
        """The module whose name stands for the weight."""
        return self.places[0][0]

    @property
    def tensor(self) -> Tensor:
        """The present value, pruned weights as zeros, in the layer's own shape."""
        return getattr(*self.places[0]).detach()

    @property
    def rows(self) -> Tensor:
        """The present value as (outputs, inputs)."""
        return self.tensor.movedim(self._input_dim, -1).flatten(1)

    @property
    def inputs(self) -> int:
        """How many inputs follow one another as channels: the width that N:M and blocks divide."""
        return self.tensor.shape[self._input_dim]

    def write(self, rows: Tensor, keep: Tensor) -> None:
        """Set the weight to `rows`, and hold it at zero where `keep` is false; both (outputs, inputs)."""
        module, key = self.places[0]
        stored = module.get_parameter(key if mask_of(module, key) is None else f"parametrizations.{key}.original")
        stored.data.copy_(self._in_own_shape(rows).clone())
        hold_at_zero(self.places, torch.empty_like(stored, dtype=torch.bool).copy_(self._in_own_shape(keep)))  # with the strides that kernels expect

    def _in_own_shape(self, rows: Tensor) -> Tensor:
        shape = list(self.tensor.shape)
        shape.append(shape.pop(self._input_dim))
        return rows.reshape(shape).movedim(-1, self._input_dim)

    @property
    def _input_dim(self) -> int:
        return 0 if is_conv1d(self.layer) or getattr(self.layer, "transposed", False) else 1


def find_weights(model: nn.Module, layers: Iterable[str] = (), skip: Iterable[str] = ()) -> tuple[list[WeightMatrix], dict[str, str]]:
    """The weights to prune, and the layers that are left alone with the reason.

    Args:
        layers: patterns; default: all linear layers and convolutions, and the projections of `nn.MultiheadAttention`.
            Embeddings are pruned only where these name them.
        skip: patterns of the layers to leave alone.

    Raises:
        KdError: a pattern matches no such layer.

    >>> found, left = find_weights(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Embedding(9, 4)))
    >>> [(weight.name, tuple(weight.rows.shape)) for weight in found]
    [('0', (8, 27))]
    """
    kinds = (*linear_kinds(), nn.modules.conv._ConvNd, nn.MultiheadAttention)
    patterns = list(layers)
    named = select_layers(model, patterns, (*kinds, nn.Embedding)) if patterns else {}
    chosen = named or {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    spared = select_layers(model, skip)
    candidates = {name: module for name, module in chosen.items() if name not in spared}
    left = {name: reason for name, reason in untouchable(candidates).items() if not all(mask_of(candidates[name], key) for key in _computed(candidates[name]))}
    holders = _holders(model)
    found: dict[int, WeightMatrix] = {}
    for name, module in candidates.items():
        for key in _keys(module) if name not in left else ():
            stored = _stored(module, key)
            places = holders[id(stored)]
            if outside := [] if named else [holder for holder, other, _ in places if not isinstance(other, kinds)]:
                left[name] = f"its weight is tied to that of {' and '.join(outside)} (--layers {name} prunes both)"
            elif refused := [holder for holder, _, _ in places if holder in spared]:
                left[name] = f"its weight is tied to that of {' and '.join(refused)}, which --skip names"
            else:
                own = [(other, other_key) for _, other, other_key in places if other is not module]
                found.setdefault(id(stored), WeightMatrix(name if key == "weight" else f"{name}.{key}", ((module, key), *own)))
    elsewhere = {} if named else weights_elsewhere(model, (*kinds, nn.Embedding), spared)
    return list(found.values()), left | elsewhere


def _keys(module: nn.Module) -> list[str]:
    names = ATTENTION_KEYS if isinstance(module, nn.MultiheadAttention) else ("weight",)
    return [name for name in names if isinstance(getattr(module, name, None), Tensor)]


def _computed(module: nn.Module) -> list[str]:
    """The tensors of a module that parametrizations compute; a name without a mask where something else packs or masks it."""
    own = module._modules.get("parametrizations")
    return list(own._modules) if own is not None else ["weight"]


def _stored(module: nn.Module, key: str) -> Tensor:
    return module._parameters[key] if mask_of(module, key) is None else module.get_parameter(f"parametrizations.{key}.original")  # type: ignore[return-value]


def _holders(model: nn.Module) -> Mapping[int, list[tuple[str, nn.Module, str]]]:
    """For each stored tensor the modules that use it, (name, module, the tensor's name)."""
    found: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        for key, weight in module._parameters.items():
            if weight is not None:
                found.setdefault(id(weight), []).append((name, module, key))
        for key in _masked_keys(module):
            found.setdefault(id(_stored(module, key)), []).append((name, module, key))
    return found


def _masked_keys(module: nn.Module) -> list[str]:
    own = module._modules.get("parametrizations")
    return [] if own is None else [key for key in own._modules if mask_of(module, key) is not None]


def count_zeros(rows: Tensor) -> int:
    """How many weights are zero."""
    return int((rows == 0).sum())


def share_of_zeros(weights: Iterable[WeightMatrix]) -> float:
    """The share of zeros over some weights together."""
    sizes = [(count_zeros(weight.tensor), weight.tensor.numel()) for weight in weights]
    return sum(zeros for zeros, _ in sizes) / max(sum(size for _, size in sizes), 1)


def expand_groups(by_group: Tensor, rows: int) -> Tensor:
    """A row for each output from one row for each group of a convolution: (groups, inputs) -> (outputs, inputs)."""
    return by_group.repeat_interleave(rows // by_group.shape[0], 0)


def split_groups(rows: Tensor, groups: int) -> tuple[Tensor, ...]:
    """The rows of each group: (outputs, inputs) -> groups times (outputs / groups, inputs)."""
    return torch.tensor_split(rows, groups)

"""Masks: pruned weights that stay zero in every later training stage, until they are folded in.

A mask is a parametrization of the weight, so that any optimizer trains the weights that are kept, and only those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from kdkit import KdError, Trait

Place = tuple[str, nn.Module, str]
"""A tensor in a model: name of its module, the module, name of the tensor in it."""


class Mask(nn.Module):
    """A weight is zero where `keep` is false; so are its gradient and its stored value.

    Args:
        keep: bool, of the weight's shape.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = parametrize.register_parametrization(layer, "weight", Mask(torch.tensor([[True, False]])))
    >>> (layer.weight != 0).tolist(), (layer.parametrizations.weight.original != 0).tolist()
    ([[True, False]], [[True, False]])
    """

    kdkit_traits: ClassVar = frozenset({Trait.MASKS_PENDING})
    keep: Tensor

    def __init__(self, keep: Tensor):
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.keep, weight, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The tensor to store for a weight."""
        return torch.where(self.keep, weight, 0.0)


def mask_of(module: nn.Module, key: str) -> Mask | None:
    """The mask of a tensor, if nothing else computes that tensor; None otherwise.

    >>> mask_of(nn.Linear(2, 1), "weight")
    """
    chain = _chain(module, key)
    return chain[0] if len(chain) == 1 and isinstance(chain[0], Mask) else None


def hold_at_zero(places: Iterable[tuple[nn.Module, str]], keep: Tensor) -> None:
    """Mask one tensor in all the modules that hold it. A mask that is there already only gains zeros.

    Args:
        places: (module, name of the tensor).
        keep: bool, of the tensor's shape: the weights that stay.
    """
    fresh = None
    for module, key in places:
        if (mask := mask_of(module, key)) is not None:
            mask.keep &= keep
            _stored(module, key).data.masked_fill_(~mask.keep, 0)
        else:
            fresh = fresh or Mask(keep.clone())
            parametrize.register_parametrization(module, key, fresh)


def settle(model: nn.Module) -> None:
    """Set the stored values behind masks to zero: the momentum of an optimizer moves them after a cut during training."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for key in module.get_submodule("parametrizations")._modules:
                if (mask := mask_of(module, key)) is not None:
                    _stored(module, key).data.masked_fill_(~mask.keep, 0)


def _stored(module: nn.Module, key: str) -> Tensor:
    """The tensor behind a parametrization."""
    return module.get_parameter(f"parametrizations.{key}.original")


@dataclass(frozen=True)
class MaskedTensor:
    """A tensor that is computed with a mask.

    Attributes:
        layer: the name of its module.
        by: what masks it: "kdkit", "torch.nn.utils.prune" or "torch.ao.pruning".
        others: what else computes the tensor, such as an adapter.
    """

    layer: str
    module: nn.Module
    key: str
    by: str
    others: tuple[str, ...] = ()

    def fold(self) -> None:
        """Make the tensor an ordinary parameter with its present value."""
        if self.by == "torch.nn.utils.prune":
            torch_prune.remove(self.module, self.key)
        else:
            parametrize.remove_parametrizations(self.module, self.key, leave_parametrized=True)
        _put_first(self.module, self.key)


def masked_tensors(model: nn.Module) -> list[MaskedTensor]:
    """The masked tensors of a model, whoever masked them."""
    return [each for name, module in model.named_modules() for each in (*_parametrized(name, module), *_hooked(name, module))]


def fold_masks(model: nn.Module) -> int:
    """Make ordinary parameters of all masked weights, in place.

    Returns:
        The number of tensors.

    Raises:
        KdError: something besides a mask computes one of them; the model is unchanged then.
    """
    found = masked_tensors(model)
    for each in found:
        if each.others:
            raise KdError(
                f"prune fold: {' and '.join(each.others)} computes {each.key} of {each.layer or 'the model'} too, so the mask can't be folded in alone",
                f"torch.nn.utils.parametrize.remove_parametrizations(layer, {each.key!r}) folds all of it in",
            )
    for each in reversed(found):
        each.fold()
    return len(found)


def _parametrized(name: str, module: nn.Module) -> Iterator[MaskedTensor]:
    if not parametrize.is_parametrized(module):
        return
    for key in module.get_submodule("parametrizations")._modules:
        chain = _chain(module, key)
        masks = [each for each in chain if _is_mask(each)]
        if masks:
            others = tuple(type(each).__name__ for each in chain if not _is_mask(each))
            yield MaskedTensor(name, module, key, "kdkit" if isinstance(masks[0], Mask) else "torch.ao.pruning", others)


def _hooked(name: str, module: nn.Module) -> Iterator[MaskedTensor]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, torch_prune.BasePruningMethod):
            yield MaskedTensor(name, module, hook._tensor_name, "torch.nn.utils.prune")


def _put_first(module: nn.Module, key: str) -> None:
    """Restore the order of the parameters: torch appends a tensor that is no longer computed, and masked weights are ahead of biases."""
    others = {name: weight for name, weight in module._parameters.items() if name != key}
    folded = module._parameters[key]
    module._parameters.clear()
    module._parameters.update({key: folded, **others})


def _is_mask(parametrization: nn.Module) -> bool:
    return Trait.MASKS_PENDING in getattr(parametrization, "kdkit_traits", ()) or type(parametrization).__module__.startswith("torch.ao.pruning")


def _chain(module: nn.Module, key: str) -> list[Any]:
    if not parametrize.is_parametrized(module, key):
        return []
    return list(module.get_submodule(f"parametrizations.{key}").children())

"""Private copies of models, and versions that share the memory of unchanged tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from kdkit.errors import KdError


def private_copy(model: nn.Module) -> nn.Module:
    """A deep copy that shares no tensors with `model`, and no class that `torch.nn.utils.parametrize` made for one of its modules.

    A tensor that belongs to an autograd graph, such as a weight that a hook of `torch.nn.utils.prune` or `weight_norm` computed, or an output
    that the model keeps, is copied without its graph, wherever the model holds it.

    Raises:
        KdError: the model can't be copied; the message names the attribute.
    """
    try:
        with _DetachedCopies():
            made = copy.deepcopy(model)
    except Exception as error:
        held = next(_uncopyable(model), "")
        raise KdError(
            f"{type(model).__name__} can't be copied{f', because of {held}' if held else ''}",
            "the model may hold a lock, an open file or a generator; remove it before %kd use",
        ) from error
    _separate_classes(made)
    return made


def _separate_classes(model: nn.Module) -> None:
    """Give each parametrized module a class of its own: torch removes a parametrization from the class, which a deep copy shares."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            kind = type(module)
            module.__class__ = type(kind.__name__, kind.__bases__, {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")})


class _DetachedCopies(TorchFunctionMode):
    """Lets `copy.deepcopy` copy tensors that belong to an autograd graph, which torch refuses; the copies are detached."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _uncopyable(model: nn.Module) -> Iterator[str]:
    """The attributes that can't be copied by themselves, with their classes."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                with _DetachedCopies():
                    copy.deepcopy(value)
            except Exception:  # whatever a class raises in its __deepcopy__ or __reduce__
                yield f"{f'{name}.{key}'.lstrip('.')} ({type(value).__name__})"


def share_unchanged(model: nn.Module, parent: nn.Module, renamed: Mapping[str, str] = MappingProxyType({})) -> int:
    """Let `model` use the storage of every tensor of `parent` that is equal by name and content; return the bytes saved.

    A tensor with a new name is compared with the tensor that had the old name, and with those whose names are gone: a wrapper, such
    as an adapter, renames the tensors of the layer inside. Both models must be versions of a session, which are never changed in place.

    Args:
        renamed: old name -> new name of layers that were renamed.

    >>> wide = nn.Sequential(nn.Linear(64, 64))
    >>> share_unchanged(nn.Sequential(copy.deepcopy(wide)), wide, {"0": "0.0"})
    16640
    """
    saved = 0
    before = {_new_name(name, renamed): tensor for name, tensor in _tensors(parent)}
    for tensor, other in _counterparts(dict(_tensors(model)), before):
        if tensor.data_ptr() != other.data_ptr():
            tensor.data = other.data
            saved += tensor.nbytes
    return saved


def _new_name(name: str, renamed: Mapping[str, str]) -> str:
    """The name of a parent's tensor after its layer, or the nearest module around it, was renamed.

    >>> _new_name("block.fc.weight", {"block": "body", "block.fc": "body.fc.0"}), _new_name("block.bias", {"block": "body"})
    ('body.fc.0.weight', 'body.bias')
    """
    layer = name
    while layer := layer.rpartition(".")[0]:
        if layer in renamed:
            return renamed[layer] + name[len(layer) :]
    return name


def _counterparts(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of equal tensors of two models; each tensor at most once, so tensors that are equal by chance are not tied."""
    gone = {name: tensor for name, tensor in theirs.items() if name not in mine}
    for name, tensor in mine.items():
        if name in theirs:
            if _same(tensor, theirs[name]):
                yield tensor, theirs[name]
            continue
        found = next((old for old, other in gone.items() if _same(tensor, other)), None)
        if found is not None:
            yield tensor, gone.pop(found)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=True)
    yield from model.named_buffers(remove_duplicate=True)


def have_equal_tensors(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same parameters and buffers, in order; tensors of other kinds than plain ones are not compared.

    >>> net = nn.Linear(2, 2)
    >>> have_equal_tensors(net, copy.deepcopy(net)), have_equal_tensors(net, nn.Linear(2, 2))
    (True, False)
    """
    mine, theirs = [tensor for _, tensor in _tensors(one)], [tensor for _, tensor in _tensors(other)]
    return len(mine) == len(theirs) and all(_equal(first, second) for first, second in zip(mine, theirs, strict=True))


def _equal(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    if type(tensor.data) is not torch.Tensor or type(other.data) is not torch.Tensor:
        return type(tensor.data) is type(other.data)
    return tensor.shape == other.shape and torch.equal(tensor.detach().cpu(), other.detach().cpu())


def _same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    plain = type(tensor.data) is torch.Tensor and type(other.data) is torch.Tensor
    return (
        plain
        and tensor.dtype == other.dtype
        and tensor.shape == other.shape
        and tensor.device == other.device
        and tensor.stride() == other.stride()
        and torch.equal(tensor, other)
    )

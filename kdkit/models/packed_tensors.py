"""Packed tensors: tensor subclasses that store their values in other tensors, such as 4-bit weights with their scales.

They are flattened and rebuilt with torch's protocol for subclasses, `__tensor_flatten__` and `__tensor_unflatten__`, which torch.compile
also uses. torchao's quantized weights implement it; their parts may be packed tensors themselves. bitsandbytes uses subclasses of
`nn.Parameter` with Python attributes instead: such a parameter is flattened to its numbers and its attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

NUMBERS = "numbers"
"""The only part of a parameter with attributes."""


def is_packed(tensor: Tensor) -> bool:
    """Whether `flatten` can split a tensor into parts.

    >>> is_packed(torch.zeros(2)), is_packed(nn.Parameter(torch.zeros(2)))
    (False, False)
    """
    return is_traceable_wrapper_subclass(tensor) or _has_attributes(tensor)


def flatten(tensor: Tensor) -> tuple[dict[str, Tensor], Any]:
    """The parts of a packed tensor by name, and the other data that `unflatten` needs."""
    packed: Any = tensor
    if _has_attributes(tensor):
        return {NUMBERS: tensor.data}, dict(vars(tensor))
    names, context = packed.__tensor_flatten__()
    return {name: getattr(packed, name) for name in names}, context


def unflatten(kind: type, parts: Mapping[str, Tensor], context: Any, size: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """The packed tensor of class `kind` with the parts and the other data that `flatten` returned."""
    made: Any = kind
    if not hasattr(made, "__tensor_unflatten__"):
        tensor = torch.Tensor._make_subclass(made, parts[NUMBERS], False)
        vars(tensor).update(context)
        return tensor
    return made.__tensor_unflatten__(dict(parts), context, size, stride)


def map_parts(tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `function` to a plain tensor, or to each plain part of a packed one; a parameter stays a parameter."""
    if not is_packed(tensor):
        return function(tensor)
    parts, context = flatten(tensor)
    made = unflatten(type(tensor), {name: map_parts(part, function) for name, part in parts.items()}, context, tensor.shape, tensor.stride())
    return as_parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def as_parameter(tensor: Tensor, requires_grad: bool) -> Tensor:
    """The packed tensor as a parameter."""
    return tensor.requires_grad_(requires_grad) if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad)


def packed_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The packed tensors in a tensor: the tensor itself and the packed ones among its parts."""
    if is_packed(tensor):
        yield tensor
        for part in flatten(tensor)[0].values():
            yield from packed_parts(part)


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that store a tensor: the parts of a packed, sparse or quantized tensor, or the tensor itself."""
    if is_packed(tensor):
        for part in flatten(tensor)[0].values():
            yield from plain_parts(part)
    elif tensor.is_sparse:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.is_quantized and tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams):
        yield from (tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
    else:
        yield tensor


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same class, dtype, shape and values; packed tensors are compared by their parts.

    >>> equal(torch.zeros(2), torch.zeros(2)), equal(torch.zeros(2), torch.zeros(2).int())
    (True, False)
    """
    if type(one.data) is not type(other.data) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    mine, theirs = list(plain_parts(one)), list(plain_parts(other))
    return len(mine) == len(theirs) and all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def _has_attributes(tensor: Tensor) -> bool:
    kind = type(tensor)
    return isinstance(tensor, nn.Parameter) and kind is not nn.Parameter and issubclass(kind, nn.Parameter) and not is_lazy(tensor) and type(tensor.data) is Tensor

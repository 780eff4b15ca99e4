"""A fingerprint of a value that can't be data: whether two such values hold the same.

It is compared when a model is rebuilt and the value is taken from the skeleton, so that another value is not taken without a word.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import io
import random
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdkit.storage.trusted_classes import path_of

DEEPEST = 24
"""Levels of values in values; what is deeper is not compared."""
STATELESS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator, io.IOBase)
"""Values that change as they are used: their state is no part of what a model computes."""


def fingerprint(value: Any) -> str:
    """A hash of what a value holds; empty for a value that holds nothing that can be read, such as a lock or a plain function.

    Of a function these are its defaults and the variables that it closes over, of an object what `copy` would copy. Parameters count with
    their shape only and modules with their class, as a saved folder holds their numbers.

    >>> scale = lambda factor: lambda x: x * factor
    >>> fingerprint(scale(2)) == fingerprint(scale(2)), fingerprint(scale(2)) == fingerprint(scale(3)), fingerprint(len)
    (True, False, '')
    """
    held = _held(value)
    return hashlib.sha256("\n".join(_lines(held, 0, {})).encode("utf-8", "backslashreplace")).hexdigest() if held else ""


def _held(value: Any) -> tuple[Any, ...]:
    """What a value holds besides its class and name; empty if that is nothing, or can't be read."""
    if isinstance(value, (*STATELESS, Tensor, nn.Module, type, types.BuiltinFunctionType, types.ModuleType)):
        return ()
    if isinstance(value, types.FunctionType):
        return (*map(_content, value.__closure__ or ()), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items())
    if isinstance(value, types.MethodType):
        return (value.__self__, value.__func__)
    try:
        registered = copyreg.dispatch_table.get(type(value))
        state = registered(value) if registered else value.__reduce_ex__(4)
    except Exception:  # a class may refuse in its own way to be copied: locks, files and generators do
        return ()
    return (*state[1:3], *(list(items) for items in state[3:5] if items is not None)) if isinstance(state, tuple) else (state,)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not assigned yet
        return None


def _lines(value: Any, depth: int, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    """A value as lines that are equal for equal values.

    Args:
        seen: number of each value so far, by its id. The value is held with it: many are made while it is read, and an id that is free is used again.
    """
    kind = type(value)
    if kind in (bytes, bytearray):
        yield f"{kind.__name__} {hashlib.sha256(value).hexdigest()}"
        return
    if value is None or kind in (bool, int, float, complex, str, range, slice):
        yield f"{kind.__name__} {value!r}"
        return
    if isinstance(value, nn.Module | type):
        yield path_of(value if isinstance(value, type) else kind)
        return
    if isinstance(value, Tensor):
        yield f"{path_of(kind)} {tuple(value.shape)} {value.dtype} {_digest(value)}"
        return
    if id(value) in seen or depth > DEEPEST:
        yield f"the value {seen[id(value)][0] if id(value) in seen else -1}"
        return
    seen[id(value)] = len(seen), value
    yield path_of(kind)
    if kind in (set, frozenset):
        yield from sorted("\n".join(_lines(each, depth + 1, dict(seen))) for each in value)
        return
    if kind in _PARTS:
        inside = _PARTS[kind](value)
    else:
        yield str(getattr(value, "__qualname__", ""))
        inside = _held(value)
    yield f"{len(inside)} parts"
    for each in inside:
        yield from _lines(each, depth + 1, seen)


def _digest(tensor: Tensor) -> str:
    """A hash of a tensor's numbers; empty for a parameter, whose numbers the folder holds, and for a tensor that is not plain numbers."""
    if (
        tensor.requires_grad
        or isinstance(tensor, nn.Parameter)
        or type(tensor.data) is not Tensor
        or tensor.layout is not torch.strided
        or tensor.is_meta
        or tensor.is_quantized
    ):
        return ""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


_PARTS: Mapping[type, Callable[[Any], Any]] = {
    list: list, tuple: list, dict: lambda value: [*value.items()],
    types.SimpleNamespace: lambda value: [*vars(value).items()], functools.partial: lambda value: [value.func, value.args, value.keywords],
}  # fmt: skip

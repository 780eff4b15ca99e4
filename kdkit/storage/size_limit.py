"""Limits on what a saved folder can make a constructor build: as many modules and as much memory as fit the tensors that the folder holds."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kdkit.errors import KdError, brief
from kdkit.guards.dispatch_modes import without_compiler
from kdkit.parameters.schema import field_name

MODULES, BYTES = 4_000, 256 * 2**20
"""What any folder may build; a pruned model's skeleton has more modules and larger tensors than its folder."""
TIMES_MODULES, TIMES_BYTES = 16, 64
NUMBER, COUNT, BASE = 2**20, 10_000, 2**24
"""The largest integers in a config: of any field, of a count that a constructor may loop over, and of the base of rotary positions."""
_FETCHES = ("use_pretrained_backbone", "use_kernels", "checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir")
_HUB = re.compile(r"(hf[-_]hub|local-dir):")
_COUNTS = re.compile(r"(^|_)(num|n|layers?|depths?|labels|blocks?|experts|heads|groups|stages?)(_|$)")
_HINT = "if you trust it, build the model yourself and pass it as skeleton"


class Size(NamedTuple):
    """The size of a saved model.

    Attributes:
        modules: in its structure.
        bytes: of its tensors.
        largest: elements along the longest axis of a tensor.
    """

    modules: int
    bytes: int
    largest: int = 0

    @classmethod
    def of(cls, modules: int, tensors: Iterable[Tensor]) -> Size:
        """The size of a model with these tensors."""
        held = list(tensors)
        return cls(modules, sum(tensor.nbytes for tensor in held), largest_axis(held))


def largest_axis(tensors: Iterable[Tensor]) -> int:
    """The number of elements along the longest axis of all tensors."""
    return max((max(tensor.shape, default=1) for tensor in tensors), default=1)


@contextlib.contextmanager
def limit_size(size: Size, what: str) -> Iterator[None]:
    """Stop what is built in this block when it becomes much larger than the saved model, before the memory is allocated.

    Raises:
        KdError: it has too many modules, or its tensors take too much memory.

    >>> from torch import nn
    >>> with limit_size(Size(1, 4), "it"):
    ...     nn.Linear(100_000, 100_000)
    Traceback (most recent call last):
    kdkit.errors.KdError: it is much larger than what its folder holds: it takes more than 268,435,712 bytes, and its tensors take 4
      hint: if you trust it, build the model yourself and pass it as skeleton
    """
    thread, count, most = threading.get_ident(), 0, MODULES + TIMES_MODULES * size.modules

    def register(*_: Any) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise KdError(f"{what} is much larger than what its folder holds: it has more than {most:,} modules, and its structure has {size.modules:,}", _HINT)

    handle = register_module_module_registration_hook(register)
    try:
        with without_compiler(_MemoryLimit(size, what)):
            yield
    finally:
        handle.remove()


class _MemoryLimit(TorchDispatchMode):
    """Find the size of each result without memory, before it is computed."""

    def __init__(self, size: Size, what: str):
        super().__init__()
        self._what, self._size, self._left = what, size, BYTES + TIMES_BYTES * size.bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if not func._schema.is_mutable and not func.is_view:
            made = predict_result(func, args, kwargs or {})
            self._left -= sum(leaf.numel() * leaf.dtype.itemsize for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
            if self._left < 0:
                most = BYTES + TIMES_BYTES * self._size.bytes
                raise KdError(
                    f"{self._what} is much larger than what its folder holds: it takes more than {most:,} bytes, and its tensors take {self._size.bytes:,}", _HINT
                )
        return func(*args, **(kwargs or {}))


def predict_result(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """The result of an operation of torch, without memory; None if its size depends on values, or the operation would fail."""
    given, options = tree_map_only(Tensor, _without_memory, (args, dict(kwargs)))
    if any(argument.name == "device" for argument in func._schema.arguments):
        options["device"] = torch.device("meta")
    try:
        return func(*given, **options)
    except (RuntimeError, NotImplementedError, TypeError, IndexError, ValueError):  # the call itself will raise the same error
        return None


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def check_config(config: Mapping[str, Any], largest: int, place: str) -> None:
    """Check the numbers of a config that a file holds, and that it names no code elsewhere.

    Args:
        largest: elements along the longest axis of the file's tensors.

    Raises:
        KdError: a number is larger than a constructor may loop over, or an implementation is to be downloaded; the message names the field.
    """
    stack: list[tuple[tuple[Any, ...], Any]] = [((key,), value) for key, value in config.items()]
    while stack:
        keys, value = stack.pop()
        if isinstance(value, dict | list):
            stack += [((*keys, key), item) for key, item in (value.items() if isinstance(value, dict) else enumerate(value))]
            continue
        name = next((key for key in reversed(keys) if isinstance(key, str)), "")
        most = BASE if "theta" in name else COUNT + largest * (1 if "label" in name else 64) if _COUNTS.search(name) else NUMBER
        if isinstance(value, int) and abs(value) > most:
            raise KdError(f"{place}: {field_name(keys)} is {brief(value)}, and the folder's tensors allow up to {most:,}", _HINT)
        if any("implementation" in str(key) for key in keys) and isinstance(value, str) and not re.fullmatch(r"[\w|]+", value):
            raise KdError(f"{place}: {field_name(keys)} names {brief(value)}, code that would be downloaded", _HINT)
        if (name in _FETCHES and value) or (isinstance(value, str) and _HUB.search(value)):
            raise KdError(f"{place}: {field_name(keys)} is {brief(value)}, and nothing is downloaded to load a folder", _HINT)

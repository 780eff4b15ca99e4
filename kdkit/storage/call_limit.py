"""A limit on what a call of a loaded model may take: a folder of a few kilobytes can describe a computation that never ends.

Each operation is priced before it runs, from the shapes of its inputs alone: the bytes of its result and its multiply-accumulates. So no single
operation is long, and between two of them the time is checked and Ctrl-C works.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kdkit.backends.onnx.runs import RunTooLarge, limit_runs
from kdkit.guards.dispatch_modes import without_compiler
from kdkit.storage.size_limit import predict_result

SECONDS = 30.0
"""Of a call, in wall-clock time."""
BYTES, TIMES_BYTES = 512 * 2**20, 16
"""Memory of the results that exist at the same time: so many bytes, and so many for each byte of the model's tensors."""
MANY = 10_000
"""Results after which those that no longer exist are forgotten."""
WORK = 2**37
"""Floating-point operations of one operation; a core of a laptop does some 2**35 in a second."""
_PRODUCTS = ("cdist", "trilinear", "rnn", "lstm", "gru")
_BY_AXIS = ("linalg", "attention", "cholesky", "svd", "qr", "inverse", "triangular", "lu_", "mm", "mv", "linear", "conv", "fft")
"""Parts of the names of operations that cost more than their elements, for which torch has no formula: rows by matrices, and elements by the longest axis."""


class CallTooLarge(Exception):
    """A call takes more than it may; the message says what, such as "a call of it takes more than 30 s"."""


@contextlib.contextmanager
def limit_call(model: nn.Module) -> Iterator[None]:
    """Stop a call of a model in this block once it takes too long or too much memory.

    Raises:
        CallTooLarge: it does.

    >>> with limit_call(nn.Identity()):
    ...     torch.zeros(2**30)
    Traceback (most recent call last):
    kdkit.storage.call_limit.CallTooLarge: a call of it takes more than 536,870,912 bytes
    """
    limit = without_compiler(_CallLimit(BYTES + TIMES_BYTES * sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))))
    with limit_runs(SECONDS):
        try:
            with limit:
                yield
        except RunTooLarge as error:
            raise CallTooLarge(str(error)) from error
        except Exception as error:
            if limit.reached and not isinstance(error, CallTooLarge):
                raise CallTooLarge(limit.reached) from error
            raise
    if limit.reached:  # the model's own code caught the error
        raise CallTooLarge(limit.reached)


class _CallLimit(TorchDispatchMode):
    def __init__(self, most: int):
        super().__init__()
        self.reached = ""
        self._most, self._end = most, time.monotonic() + SECONDS
        self._live: dict[StorageWeakRef, int] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        options = kwargs or {}
        if time.monotonic() > self._end:
            self._stop(f"a call of it takes more than {SECONDS:g} s")
        if func.is_view:
            return func(*args, **options)
        made = None if func._schema.is_mutable else predict_result(func, args, options)
        if self._held() + _bytes(func, args, options, made) > self._most:
            self._stop(f"a call of it takes more than {self._most:,} bytes")
        if _work(func, args, options, made) > WORK:
            self._stop(f"one operation of it, {func._overloadpacket.__name__}, takes more than {WORK:,} steps")
        found = func(*args, **options)
        for leaf in tree_leaves(found):
            if type(leaf) is Tensor and leaf.layout is torch.strided:
                self._live[StorageWeakRef(leaf.untyped_storage())] = leaf.untyped_storage().nbytes()
                self._total += leaf.untyped_storage().nbytes()
        return found

    def _held(self) -> int:
        """The bytes of the results that still exist, or more; exact where it counts."""
        if self._total > self._most // 2 or len(self._live) > MANY:
            self._live = {storage: size for storage, size in self._live.items() if not storage.expired()}
            self._total = sum(self._live.values())
        return self._total

    def _stop(self, reason: str) -> None:
        self.reached = self.reached or reason
        raise CallTooLarge(reason)


def _bytes(func: Any, args: tuple, kwargs: Mapping[str, Any], made: Any) -> int:
    if made is not None:
        return sum(leaf.numel() * leaf.dtype.itemsize for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
    given = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    if torch.Tag.dynamic_output_shape not in func.tags:
        return 0
    if func._overloadpacket.__name__ in ("repeat_interleave", "bincount"):  # the values are sizes
        return sum(8 * int(leaf.abs().sum()) for leaf in given if not leaf.is_floating_point())
    return sum(8 * leaf.numel() * max(leaf.dim(), 1) for leaf in given)


def _work(func: Any, args: tuple, kwargs: Mapping[str, Any], made: Any) -> int:
    """About how many steps an operation takes."""
    formula = flop_registry.get(func._overloadpacket)
    if formula is not None and made is not None:
        return int(formula(*args, **kwargs, out_val=made))
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs), made)) if isinstance(leaf, Tensor)]
    elements, name = sum(leaf.numel() for leaf in tensors), func._overloadpacket.__name__
    if any(part in name for part in _PRODUCTS):
        first, *others = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
        return 2 * first.numel() // max(first.shape[-1], 1) * sum(leaf.numel() for leaf in others)
    if any(part in name for part in _BY_AXIS):
        return 2 * elements * max((size for leaf in tensors for size in leaf.shape), default=1)
    return elements * _window(func, args, kwargs)


def _window(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """How many elements each element of a pooled result is made of."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.name == "kernel_size":
            size = kwargs.get("kernel_size", args[index] if index < len(args) else 1)
            return math.prod(size) if isinstance(size, list | tuple) else int(size)
    return 1

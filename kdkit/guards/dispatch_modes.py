"""Observers of torch's operators that do without torch's compiler.

Torch keeps its compiler away from the code of a dispatch mode, and loads the compiler for that at the mode's first operator, which takes
a second. While the compiler is not loaded, nothing can be compiled.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, TypeVar

from torch.utils._python_dispatch import TorchDispatchMode

Mode = TypeVar("Mode", bound=TorchDispatchMode)


def without_compiler(mode: Mode) -> Mode:
    """A dispatch mode that does not load torch's compiler; the same mode, changed in place.

    >>> class Silent(TorchDispatchMode):
    ...     def __torch_dispatch__(self, func, types, args=(), kwargs=None):
    ...         return func(*args, **(kwargs or {}))
    >>> with without_compiler(Silent()): 1 + 1
    2
    """
    if "torch._dynamo" not in sys.modules:
        kind: Any = type(mode)
        mode.__class__ = _unwrapped(kind)
    return mode


@functools.cache
def _unwrapped(kind: Any) -> Any:
    facts = {"__torch_dispatch__": inspect.unwrap(kind.__torch_dispatch__), "_should_skip_dynamo": classmethod(lambda cls: False)}
    return type(kind.__name__, (kind,), facts)

"""Renamed parts of the public interface: the old name works for one release, with a warning that names the new one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that a public name has changed; the old one works for one more release.

    Args:
        stacklevel: of the frame to blame, as for `warnings.warn`; 3 is the caller of the function that warns.
    """
    warnings.warn(f"{old} is now called {new}; the old name will be removed in the next release", DeprecationWarning, stacklevel=stacklevel)


def renamed_argument(old: str, new: str) -> Callable[[Function], Function]:
    """Decorate a function so that it still takes a keyword argument by its old name, with a `DeprecationWarning`.

    >>> @renamed_argument("made_by", "source")
    ... def describe(source): return source
    >>> with warnings.catch_warnings(record=True):
    ...     describe(made_by="prune channels")
    'prune channels'
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_either(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                warn_renamed(f"{function.__qualname__}({old}=)", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_either  # type: ignore[return-value]

    return decorate


def renamed_property(old: str, new: str) -> property:
    """The property that reads and writes the attribute `new` under its old name, with a `DeprecationWarning`.

    >>> class Data:
    ...     reason = "two tensors"
    ...     why = renamed_property("why", "reason")
    >>> with warnings.catch_warnings(record=True):
    ...     Data().why
    'two tensors'
    """

    def read(self: Any) -> Any:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        setattr(self, new, value)

    return property(read, write)

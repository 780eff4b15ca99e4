"""Torch's modes: gradients and autocast, restored however a call ends, with what blocks that an interrupt cut off have to clean up.

An interrupt on the way out of `no_grad` or `autocast` would leave the mode on for the rest of the process. Under `no_grad`
nothing trains any more; under `autocast` all later training sees stale copies of its weights.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch

from kdkit.guards.cleanup import always_run, count_cleanups, run_cleanups

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Target = TypeVar("Target")

_DEVICES = ("cpu", "cuda")


class TorchModes:
    """A snapshot of the modes of this thread.

    It is no context manager: one that an interrupt cuts off ends when it is garbage-collected, perhaps in the middle of the next training.

    >>> modes = TorchModes()
    >>> _ = torch.set_grad_enabled(False)
    >>> modes.put_back()
    >>> torch.is_grad_enabled()
    True
    """

    def __init__(self) -> None:
        self.gradients, self.depth = torch.is_grad_enabled(), _autocast_depth()
        self.casts = {device: torch.is_autocast_enabled(device) for device in _DEVICES}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchModes) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def put_back(self) -> None:
        """Restore the snapshot; safe to call twice."""
        torch.set_grad_enabled(self.gradients)
        for device, on in self.casts.items():
            torch.set_autocast_enabled(device, on)
        while _autocast_depth() > self.depth:
            torch.autocast_decrement_nesting()
        while _autocast_depth() < self.depth:
            torch.autocast_increment_nesting()
        if not self.depth:
            torch.clear_autocast_cache()


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def restore_torch_modes(target: Target) -> Target:
    """Decorate a function, or all public methods of a class, to restore torch's modes when it returns, raises or is interrupted.

    >>> @restore_torch_modes
    ... def forgetful(): torch.set_grad_enabled(False)
    >>> forgetful()
    >>> torch.is_grad_enabled()
    True
    """
    if not isinstance(target, type):
        return _guarded(target)
    for name, member in list(vars(target).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, FunctionType):
            setattr(target, name, _guarded(member))
        elif isinstance(member, classmethod):
            setattr(target, name, classmethod(_guarded(member.__func__)))
    return target


def _guarded(function: Any) -> Any:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        modes, kept = TorchModes(), count_cleanups()

        def put_back() -> None:
            run_cleanups(kept)
            modes.put_back()

        # no context manager, for the reason above: an interrupt can hit its __exit__ before the cleanup begins
        try:
            return function(*args, **kwargs)
        finally:
            try:
                put_back()
            except KeyboardInterrupt:
                put_back()
                raise

    return guarded


@contextlib.contextmanager
def gradients_off() -> Iterator[None]:
    """A block without gradients, to be used in generators: `torch.no_grad` in one that an interrupt cut off acts when it is garbage-collected.

    >>> with gradients_off(): torch.is_grad_enabled()
    False
    """
    before = torch.is_grad_enabled()
    with always_run(lambda: torch._C._set_grad_enabled(before)):
        torch._C._set_grad_enabled(False)
        yield


def without_gradients(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function to run without gradients, as `torch.no_grad` does, with no moment at which an interrupt leaves them off.

    >>> without_gradients(torch.is_grad_enabled)(), torch.is_grad_enabled()
    (False, True)
    """

    @functools.wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        before = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(False)
            return function(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(before)  # a compiled call: an interrupt comes after it, or before a Python function begins

    return called

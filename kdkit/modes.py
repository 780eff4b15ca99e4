"""Torch's modes: gradients and autocast, put back however a call ends.

An interrupt on the way out of `no_grad` or `autocast` would leave them on for the rest of the kernel's life; under the one
nothing trains any more, and under the other all later training sees stale copies of its weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Made = TypeVar("Made")

_DEVICES = ("cpu", "cuda")


class Modes:
    """The modes of this thread as they are now.

    No context manager: one that an interrupt cuts off ends when it is collected, which may be in the middle of the next training.

    >>> modes = Modes()
    >>> _ = torch.set_grad_enabled(False)
    >>> modes.put_back()
    >>> torch.is_grad_enabled()
    True
    """

    def __init__(self) -> None:
        self.gradients, self.depth = torch.is_grad_enabled(), _autocast_depth()
        self.casts = {device: torch.is_autocast_enabled(device) for device in _DEVICES}

    def put_back(self) -> None:
        """All as it was; called twice it does no harm."""
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


def keeping_modes(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Make a function leave torch's modes as it found them: also where it is interrupted, or calls what forgets to.

    >>> @keeping_modes
    ... def forgetful(): torch.set_grad_enabled(False)
    >>> forgetful()
    >>> torch.is_grad_enabled()
    True
    """

    @functools.wraps(function)
    def kept(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        modes = Modes()
        try:
            return function(*args, **kwargs)
        finally:
            try:
                modes.put_back()
            except KeyboardInterrupt:
                modes.put_back()
                raise

    return kept

"""Switches of torch that hold for the whole process, and outlive a stage that forgets to put them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
}
"""What each is called -> (how it is read, how it is set); gradients and autocast are not here, as the kit itself puts them back."""


def in_force() -> dict[str, Any]:
    """How the switches stand now."""
    return {name: read() for name, (read, _) in SWITCHES.items()}


def put_back(before: dict[str, Any]) -> Iterator[str]:
    """Put the switches back to how they stood; a line for each that stood otherwise.

    >>> before = in_force()
    >>> torch.set_default_dtype(torch.float64)
    >>> list(put_back(before)), list(put_back(before))
    (["left torch's default dtype at torch.float64"], [])
    """
    for name, value in in_force().items():
        if value != before[name]:
            SWITCHES[name][1](before[name])
            yield f"left torch's {name} at {value}"

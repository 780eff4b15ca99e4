"""Seeds for a block of code, without disturbing the user's random state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy
import torch

from kdkit.guards.cleanup import always_run


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """A block after which random, numpy and torch (every device) continue as if it had drawn no random numbers.

    >>> _ = torch.manual_seed(0)
    >>> with random_state_kept(): first = torch.rand(1)
    >>> bool(torch.rand(1) == first)
    True
    """
    python, array, tensors = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore() -> None:
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(tensors)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)

    with always_run(restore):
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed random, numpy and torch (every device) for a block; restore the user's random state afterwards.

    >>> with seeded(1): first = torch.rand(1)
    >>> with seeded(1): bool(torch.rand(1) == first)
    True
    """
    with random_state_kept():
        seed_all(seed)
        yield


def seed_all(seed: int) -> None:
    """Seed random, numpy and torch (every device); call it within a block that restores the user's random state."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)

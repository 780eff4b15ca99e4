"""Seeds: random numbers of one's own, the user's sequences undisturbed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy
import torch

from kdkit.restoring import restored


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed random, numpy and torch (every device); afterwards the user's sequences go on as if nothing had been.

    >>> with seeded(1): first = torch.rand(1)
    >>> with seeded(1): bool(torch.rand(1) == first)
    True
    """
    python, array = random.getstate(), numpy.random.get_state()

    def put_back() -> None:
        random.setstate(python)
        numpy.random.set_state(array)

    with restored(put_back), torch.random.fork_rng():
        seed_all(seed)
        yield


def seed_all(seed: int) -> None:
    """Seed random, numpy and torch (every device), within a block that puts the user's sequences back."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)

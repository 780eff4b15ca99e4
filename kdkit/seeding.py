"""Seeds: random numbers of one's own, the user's sequences undisturbed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy
import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed random, numpy and torch (every device); afterwards the user's sequences go on as if nothing had been.

    >>> with seeded(1): first = torch.rand(1)
    >>> with seeded(1): bool(torch.rand(1) == first)
    True
    """
    python, array = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(array)

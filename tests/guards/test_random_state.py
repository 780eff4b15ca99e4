"""Seeds: a block has its own random numbers, and the user's sequences continue as if it had not run."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdkit.guards import seeded


def draw() -> tuple[float, float, float]:
    """One number of each generator."""
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


@pytest.mark.slow
@given(st.integers(0, 2**40))
def test_a_seed_decides_the_numbers_of_its_block(seed):
    with seeded(seed):
        first = draw()
    with seeded(seed):
        assert draw() == first


def test_other_seeds_give_other_numbers():
    with seeded(1):
        first = draw()
    with seeded(2):
        assert not set(draw()) & set(first)


@pytest.mark.slow
@given(st.integers(0, 2**40))
def test_a_block_does_not_disturb_the_sequences_of_the_user(seed):
    random.seed(7), numpy.random.seed(7), torch.manual_seed(7)
    expected = [draw(), draw()]
    random.seed(7), numpy.random.seed(7), torch.manual_seed(7)
    found = [draw()]
    with seeded(seed):
        draw()
    assert [*found, draw()] == expected


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_restores_the_sequences_too(error):
    random.seed(7), numpy.random.seed(7), torch.manual_seed(7)
    expected = draw()
    random.seed(7), numpy.random.seed(7), torch.manual_seed(7)

    def fail() -> None:
        with seeded(3):
            draw()
            raise error

    with pytest.raises(error):
        fail()
    assert draw() == expected

"""A process that is killed while it writes: what was there, or what is new, is complete, and the next write works."""

import random
import time
from pathlib import Path

import pytest

from tests.fixtures.processes import Forked
from tests.fixtures.writers import WRITERS

KILLS = 8


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_write_leaves_the_old_or_the_new_and_the_next_one_works(tmp_path: Path, name: str) -> None:
    kind, path, chance = WRITERS[name], tmp_path / "target", random.Random(0)
    kind.write(path, 1)
    began = time.perf_counter()
    kind.write(path, 1)
    once = time.perf_counter() - began

    def write_on() -> None:
        for number in range(10_000):
            kind.write(path, 2 + number % 2)

    for _ in range(KILLS):
        Forked(write_on).kill_after(once * chance.uniform(0.2, 4))
        assert kind.read(path) in (1, 2, 3)
    kind.write(path, 4)
    assert kind.read(path) == 4
    assert [each.name for each in tmp_path.iterdir()] == ["target"]
    if name == "checkpoint":
        assert sorted(each.name for each in path.iterdir()) == ["epoch-4.safetensors", "training.json"]

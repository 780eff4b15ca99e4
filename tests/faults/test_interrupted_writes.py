"""Ctrl-C at any moment of a write or an export: what was there, or what is new, is complete."""

import random
import threading
from pathlib import Path

import pytest

from kdkit import Session
from tests.fixtures import zoo
from tests.fixtures.interruption import duration, interrupted
from tests.fixtures.writers import WRITERS

pytestmark = [
    pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="interrupts reach the main thread alone"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MOMENTS = 40


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupted_write_leaves_the_old_or_the_new(tmp_path: Path, name: str) -> None:
    kind, path, chance = WRITERS[name], tmp_path / "target", random.Random(0)
    once = duration(lambda: kind.write(path, 1))
    for number in range(MOMENTS):
        interrupted(lambda number=number: kind.write(path, 2 + number % 2), chance.uniform(0, 1.5 * once))
        assert kind.read(path) in (1, 2, 3)
    kind.write(path, 4)
    assert kind.read(path) == 4
    assert [each.name for each in tmp_path.iterdir()] == ["target"]


@pytest.mark.slow
def test_an_interrupted_export_leaves_the_old_file_and_the_session(tmp_path: Path) -> None:
    batch, path = zoo.batch("mlp"), tmp_path / "small.onnx"
    session = Session(zoo.mlp(), eval=(batch.args[0], batch.labels), measures=())
    once = duration(lambda: session.export(path))
    whole, history = path.read_bytes(), session.history
    for share in (0.05, 0.3, 0.6, 0.9, 0.98):
        interrupted(lambda: session.export(path), share * once)
        assert len(path.read_bytes()) == len(whole)
        assert session.history is history
    assert [each.name for each in tmp_path.iterdir()] == ["small.onnx"]

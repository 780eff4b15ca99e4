"""A full disk: each write ends in one message, and what was there is complete."""

from pathlib import Path

import pytest

from tests.fixtures.processes import MARK, Forked
from tests.fixtures.writers import WRITERS


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_is_full_at_any_byte_is_one_message_and_the_old_one_stays(tmp_path: Path, name: str) -> None:
    kind, path = WRITERS[name], tmp_path / "target"
    kind.write(path, 1)
    largest = max(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file())
    refused = 0
    for share in (0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        result = Forked(lambda: kind.write(path, 2), int(largest * share)).result()
        assert not str(result).startswith(MARK), result
        if result is not None:
            refused += 1
            assert "can't write" in result or "can't be written" in result
            assert "hint" in result
            assert kind.read(path) == 1
    assert refused > 4
    kind.write(path, 3)
    assert kind.read(path) == 3
    assert [each.name for each in tmp_path.iterdir()] == ["target"]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_first_write_to_a_full_disk_leaves_nothing_that_looks_complete(tmp_path: Path, name: str) -> None:
    kind, path = WRITERS[name], tmp_path / "target"
    result = Forked(lambda: kind.write(path, 2), 100).result()
    assert str(result).startswith("KdError: ")
    assert not [each for each in tmp_path.rglob("*") if each.is_file() and each.name != "training.json"]
    kind.write(path, 3)
    assert kind.read(path) == 3

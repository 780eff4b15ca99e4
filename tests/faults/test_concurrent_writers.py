"""Several writers of one target at the same time: each one ends well or in one message, and the target is complete."""

import threading
from pathlib import Path

import pytest

from kdkit.errors import KdError
from tests.fixtures.processes import MARK, Forked
from tests.fixtures.writers import WRITERS

WRITES = 8


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_processes_that_write_one_target_leave_it_complete(tmp_path: Path, name: str) -> None:
    kind, path = WRITERS[name], tmp_path / "target"

    def write_on(state: int) -> list[str]:
        failed = []
        for _ in range(WRITES):
            try:
                kind.write(path, state)
            except KdError as error:
                failed.append(str(error))
        return failed

    results = [process.result() for process in [Forked(lambda state=state: write_on(state)) for state in (1, 2, 3)]]
    assert not any(str(result).startswith(MARK) for result in results), results
    kind.write(path, 4)
    assert kind.read(path) == 4
    assert [each.name for each in tmp_path.iterdir()] == ["target"]
    if name != "checkpoint":  # two trainings in one --checkpoint folder refuse each other's files
        assert results == [[], [], []]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_threads_that_write_one_target_leave_it_complete(tmp_path: Path, name: str) -> None:
    kind, path, raised = WRITERS[name], tmp_path / "target", []

    def write_on(state: int) -> None:
        for _ in range(WRITES):
            try:
                kind.write(path, state)
            except Exception as error:
                raised.append(error)

    threads = [threading.Thread(target=write_on, args=(state,)) for state in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # one message of kdkit's own is allowed where another thread was first; any other error is not
    assert [error for error in raised if not isinstance(error, KdError)] == []
    kind.write(path, 4)
    assert kind.read(path) == 4
    assert [each.name for each in tmp_path.iterdir()] == ["target"]

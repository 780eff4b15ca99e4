"""Long use of one session: neither memory, nor files, nor threads grow with the number of lines. `make soak` runs the long form."""

import gc
import os
import threading
from pathlib import Path

import pytest

from kdkit.errors import KdError
from tests.fixtures.notebook import Notebook
from tests.fixtures.thoroughness import SOAK_ROUNDS

ROUNDS = SOAK_ROUNDS or 6
"""Of nine lines each, after two rounds in which caches fill."""

ROUND = (
    "prune channels --ratio 0.5 --on @base --as slim",
    "tune finetune --epochs 1 --batch-size 16",
    "undo",
    "save small @slim",
    "load small",
    "compare",
    "nothing of that name",
    "prune channels --ratio 5",
    "keep @base --as base",
)


def held() -> tuple[int, int, int]:
    """Open files, threads, and bytes of memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE")


def run_round(cells: Notebook) -> int:
    """The number of lines that ended in one message."""
    refused = 0
    for line in ROUND:
        try:
            cells.shell.run_line_magic("kd", line)
        except KdError:
            refused += 1
    session = cells.session
    for version in session.versions:
        if version.name not in ("@base", session.head.name):
            session.drop(version)
    return refused


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_session_that_is_used_for_long_holds_no_more_than_at_first(cells: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run_round(cells)
    files, threads, size = held()
    for _ in range(ROUNDS):
        assert run_round(cells) == 2
    files_now, threads_now, size_now = held()
    assert files_now <= files
    assert threads_now <= threads
    assert size_now - size < 20e6 + 20e3 * ROUNDS * len(ROUND)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]

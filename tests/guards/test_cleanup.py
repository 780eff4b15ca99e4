"""Cleanup: it runs however a block ends, and an interrupt can't skip it."""

from __future__ import annotations

import contextlib

import pytest

from kdkit.guards.cleanup import always_run


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_cleanup_runs_once_however_the_block_ends(error):
    calls: list[str] = []

    def work() -> None:
        with always_run(lambda: calls.append("cleanup")):
            calls.append("block")
            if error:
                raise error

    with pytest.raises(error) if error else contextlib.nullcontext():
        work()
    assert calls == ["block", "cleanup"]


def test_a_cleanup_that_is_interrupted_runs_again_and_the_interrupt_is_raised():
    calls: list[int] = []

    def cleanup() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise KeyboardInterrupt

    def work() -> None:
        with always_run(cleanup):
            pass

    with pytest.raises(KeyboardInterrupt):
        work()
    assert calls == [0, 1]


def test_a_cleanup_that_fails_is_not_repeated():
    calls: list[str] = []

    def cleanup() -> None:
        calls.append("cleanup")
        raise ValueError("broken")

    def work() -> None:
        with always_run(cleanup):
            pass

    with pytest.raises(ValueError, match="broken"):
        work()
    assert calls == ["cleanup"]

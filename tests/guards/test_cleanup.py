"""Cleanup: it runs however a block ends, and an interrupt can't skip it."""

from __future__ import annotations

import contextlib
import gc
import threading

import pytest

from kdkit.guards.cleanup import always_run, count_cleanups, run_cleanups


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


def cut_off(calls: list[str], name: str = "cleanup") -> contextlib.AbstractContextManager:
    """A block that was entered and never left, as after an interrupt on its way out."""
    block = always_run(lambda: calls.append(name))
    block.__enter__()
    return block


def test_what_an_interrupt_cut_off_runs_once_the_newest_first():
    calls: list[str] = []
    with always_run(lambda: calls.append("outer")):
        kept, held = count_cleanups(), [cut_off(calls, "first"), cut_off(calls, "second")]
        run_cleanups(kept)
        run_cleanups(kept)
        assert calls == ["second", "first"]
        held.clear()
        gc.collect()
    assert calls == ["second", "first", "outer"]


def test_cleanups_of_other_threads_are_left_to_them_while_they_live():
    calls: list[str] = []
    begun, go, held = threading.Event(), threading.Event(), []

    def work() -> None:
        held.append(cut_off(calls))
        begun.set()
        go.wait()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    run_cleanups(0)
    assert calls == []
    go.set()
    thread.join()
    run_cleanups(0)
    assert calls == ["cleanup"]

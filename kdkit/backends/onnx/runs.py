"""Runs of onnxruntime that can be given a limit: a graph may loop for ever, and onnxruntime does not notice Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

BYTES = 2**30
"""Memory of all sessions that are opened under a limit, together."""
_SECONDS: ContextVar[float | None] = ContextVar("seconds", default=None)


class RunTooLarge(Exception):
    """A run was stopped at its limit; the message says at which."""


@contextlib.contextmanager
def limit_runs(seconds: float) -> Iterator[None]:
    """Stop each run in this block after so many seconds, or when it takes too much memory; Ctrl-C stops it too.

    Raises:
        RunTooLarge: a run took more.
    """
    token = _SECONDS.set(seconds)
    try:
        yield
    finally:
        _SECONDS.reset(token)


def is_limited() -> bool:
    """Whether a block of `limit_runs` is entered."""
    return _SECONDS.get() is not None


def limit_memory(options: SessionOptions) -> None:
    """Let a session that is opened with these options take no more than `BYTES`."""
    _register_allocator()
    options.add_session_config_entry("session.use_env_allocators", "1")


@functools.cache
def _register_allocator() -> None:
    """Give the process a second allocator, which only sessions use that ask for it."""
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT)
    # -1 is onnxruntime's default; strategy 1 takes what is asked for, and not the next power of two
    sizes = {"max_mem": BYTES, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(sizes))


def run_session(session: InferenceSession, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a session, all or those with the given names.

    Raises:
        RunTooLarge: there is a limit, and the run was stopped at it.
        Exception: whatever onnxruntime raises.
    """
    seconds = _SECONDS.get()
    return session.run(names, feeds) if seconds is None else _run_beside(session, names, feeds, seconds)


def _run_beside(session: InferenceSession, names: list[str] | None, feeds: dict[str, np.ndarray], seconds: float) -> list[np.ndarray]:
    """Run in another thread, so that this one can stop the run: onnxruntime looks at `terminate` before each operator."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    found: list[list[np.ndarray]] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            found.append(session.run(names, feeds, options))
        except Exception as error:  # it is raised in the thread that waits
            raised.append(error)

    thread: Any = threading.Thread(target=run, name="kdkit-onnx-run", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:
        options.terminate = thread.is_alive()
    if raised and "smaller than requested bytes" in str(raised[0]):
        raise RunTooLarge(f"a call of it takes more than {BYTES:,} bytes") from raised[0]
    if raised:
        raise raised[0]
    if not found:
        raise RunTooLarge(f"a call of it takes more than {seconds:g} s")
    return found[0]

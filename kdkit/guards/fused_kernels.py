"""Torch's switches of fused kernels, which belong to the process: blocks of several threads turn them off, and the last block that ends turns them on again.

A block that an interrupt cut off is ended by `end_blocks`, which `restore_torch_modes` calls.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

Switches = dict[str, bool]

_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
_PLAIN = "math attention"
_FUSED_ATTENTION = tuple(f"{kind} attention" for kind in _ATTENTION if kind != "math")


class _Block(NamedTuple):
    """A block that runs, and the switches that it keeps off."""

    thread: threading.Thread
    names: tuple[str, ...]


_LOCK = threading.RLock()
_BLOCKS: list[_Block] = []
_BEFORE: Switches = {}
"""The switches as they are outside of all blocks; empty while no block runs."""


def read_fused_kernels() -> Switches:
    """Every switch with its value outside of all blocks, by name.

    >>> read_fused_kernels()["mha fastpath"]
    True
    """
    with _LOCK:
        return dict(_BEFORE) or _read()


def set_fused_kernels(switches: Switches) -> None:
    """Set all switches to what `read_fused_kernels` gave; those that a block keeps off follow when it ends."""
    with _LOCK:
        _BEFORE.update(switches)
        _settle()


@contextlib.contextmanager
def without_kernels(*names: str) -> Iterator[None]:
    """A block in which the switches of these names are off, in all threads; without a fused attention, plain attention is on.

    >>> with without_kernels("mha fastpath"): torch.backends.mha.get_fastpath_enabled()
    False
    """
    block = _Block(threading.current_thread(), names)
    try:
        with _LOCK:
            if not _BEFORE:
                _BEFORE.update(_read())
            _BLOCKS.append(block)
            _settle()
        yield
    finally:
        with _LOCK:
            _keep([each for each in _BLOCKS if each is not block])


def count_blocks() -> int:
    """The number of blocks of this thread that have not ended."""
    return len(_own_blocks())


def end_blocks(keep: int) -> None:
    """End this thread's blocks, except for the `keep` oldest, and those of threads that have ended; safe to call twice."""
    with _LOCK:
        ended = _own_blocks()[keep:]
        _keep([block for block in _BLOCKS if block.thread.is_alive() and not any(block is each for each in ended)])


def _own_blocks() -> list[_Block]:
    return [block for block in list(_BLOCKS) if block.thread is threading.current_thread()]


def _keep(blocks: list[_Block]) -> None:
    _BLOCKS[:] = blocks
    _settle()


def _settle() -> None:
    """Bring the switches to what the blocks need; one that an interrupt cut off is made up for by the next."""
    if not _BEFORE:
        return
    off = {name for block in _BLOCKS for name in block.names}
    needed = {_PLAIN} if off & set(_FUSED_ATTENTION) else set()
    _write({name: (on or name in needed) and name not in off for name, on in _BEFORE.items()})
    if not _BLOCKS:
        _BEFORE.clear()


def _read() -> Switches:
    attention: dict[str, Any] = {f"{kind} attention": getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in _ATTENTION}
    return attention | {"mha fastpath": torch.backends.mha.get_fastpath_enabled(), "mkldnn": torch.backends.mkldnn.enabled, "cudnn": torch.backends.cudnn.enabled}


def _write(switches: Switches) -> None:
    for kind in _ATTENTION:
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(switches[f"{kind} attention"])
    torch.backends.mha.set_fastpath_enabled(switches["mha fastpath"])
    torch.backends.mkldnn.enabled = switches["mkldnn"]  # type: ignore[assignment]
    torch.backends.cudnn.enabled = switches["cudnn"]

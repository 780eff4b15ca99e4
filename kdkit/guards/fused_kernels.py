"""Torch's switches of fused kernels, which belong to the process: blocks of several threads turn them off, and the last block that ends turns them on again.

A block that an interrupt cut off is ended by `end_blocks`, which `restore_torch_modes` calls.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

Switches = dict[str, bool]

_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
_LOCK = threading.RLock()
_BLOCKS: list[tuple[int, frozenset[str]]] = []
"""The thread of each block that runs, and the switches that it keeps off."""
_BEFORE: Switches = {}
"""The switches as they were before the first of these blocks."""


def read_fused_kernels() -> Switches:
    """Every switch with its value, by name.

    >>> read_fused_kernels()["mha fastpath"]
    True
    """
    attention: dict[str, Any] = {f"{kind} attention": getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in _ATTENTION}
    return attention | {"mha fastpath": torch.backends.mha.get_fastpath_enabled(), "mkldnn": torch.backends.mkldnn.enabled, "cudnn": torch.backends.cudnn.enabled}


def set_fused_kernels(switches: Switches) -> None:
    """Set all switches to what `read_fused_kernels` gave."""
    for kind in _ATTENTION:
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(switches[f"{kind} attention"])
    torch.backends.mha.set_fastpath_enabled(switches["mha fastpath"])
    torch.backends.mkldnn.enabled = switches["mkldnn"]  # type: ignore[assignment]
    torch.backends.cudnn.enabled = switches["cudnn"]


@contextlib.contextmanager
def without_kernels(*names: str) -> Iterator[None]:
    """A block in which the switches of these names are off, in all threads.

    >>> with without_kernels("mha fastpath"): torch.backends.mha.get_fastpath_enabled()
    False
    """
    held = count_blocks()
    try:
        with _LOCK:
            if not _BLOCKS:
                _BEFORE.update(read_fused_kernels())
            _BLOCKS.append((threading.get_ident(), frozenset(names)))
            _apply()
        yield
    finally:
        end_blocks(held)


def count_blocks() -> int:
    """The number of blocks of this thread that have not ended."""
    return sum(thread == threading.get_ident() for thread, _ in _BLOCKS)


def end_blocks(keep: int) -> None:
    """End this thread's blocks, except for the `keep` oldest; safe to call twice."""
    with _LOCK:
        ours = [block for block in _BLOCKS if block[0] == threading.get_ident()][keep:]
        if ours:
            _BLOCKS[:] = [block for block in _BLOCKS if not any(block is each for each in ours)]
            _apply()


def _apply() -> None:
    off = frozenset[str]().union(*(names for _, names in _BLOCKS))
    set_fused_kernels({name: on and name not in off for name, on in _BEFORE.items()})

"""Torch's switches of fused kernels, which belong to the process: blocks of several threads turn them off, and the last block that ends turns them on again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from kdkit.guards.cleanup import always_run

Switches = dict[str, bool]

_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
_PLAIN = "math attention"
_FUSED_ATTENTION = tuple(f"{kind} attention" for kind in _ATTENTION if kind != "math")


_LOCK = threading.RLock()
_BLOCKS: dict[object, tuple[str, ...]] = {}
"""The switches that each block keeps off."""
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
    block = object()

    def end() -> None:
        with _LOCK:
            _BLOCKS.pop(block, None)
            _settle()

    with always_run(end):
        with _LOCK:
            if not _BEFORE:
                _BEFORE.update(_read())
            _BLOCKS[block] = names
            _settle()
        yield


def _settle() -> None:
    """Bring the switches to what the blocks need; one that an interrupt cut off is made up for by the next."""
    if not _BEFORE:
        return
    off = {name for names in _BLOCKS.values() for name in names}
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

"""Predictions: the outputs of models for batches of data, kept so that no model runs twice on the same inputs.

A batch is recognized by its content, so data that change from pass to pass are never mistaken for what was there before.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from kdkit.guards import gradients_off
from kdkit.guards.scratch import ScratchFolder

if TYPE_CHECKING:
    from kdkit.data import Batch
    from kdkit.tasks import Call

MEMORY_BYTES = 256 * 2**20
"""Outputs up to which a store keeps them in memory; those beyond are written to files."""

DISK_BYTES = 2 * 2**30
"""Outputs in files up to which a store keeps them; beyond, those of the model that came longest ago go, but for the first model's."""

PLAIN = (str, int, float, bool, bytes, type(None))
"""What may be among inputs and outputs beside tensors."""


class PredictionStore:
    """The outputs of several models, in memory and then in files of a scratch folder; those of a model go when the model does.

    Args:
        memory_bytes, disk_bytes: how much is kept.

    >>> from kdkit.data import Batch
    >>> net, store, batch = nn.Linear(2, 3), PredictionStore(), Batch((torch.ones(4, 2),))
    >>> with store.answering(net, "cpu", lambda: contextlib.nullcontext(lambda batch: batch.call(net))) as call:
    ...     bool(torch.equal(call(batch), call(batch))), store.kept_bytes
    (True, 48)
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES, disk_bytes: int = DISK_BYTES) -> None:
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self._folder = ScratchFolder()
        self._models: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, bytes], _Kept]] = weakref.WeakKeyDictionary()
        self._states: weakref.WeakKeyDictionary[nn.Module, list[tuple[str, int, str]]] = weakref.WeakKeyDictionary()
        self._held = {"memory": 0, "disk": 0}
        self._lock = threading.RLock()  # a model may be collected, and its outputs freed, at any moment, also within a block
        self._files = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of all outputs that are kept."""
        return sum(self._held.values())

    @contextlib.contextmanager
    def answering(self, model: nn.Module, place: str, runner: Callable[[], AbstractContextManager[Call]]) -> Iterator[Call]:
        """A function that returns a model's output for a batch: what was kept, or else what the model gives, which is then kept.

        Args:
            model: if its weights have changed since its outputs were kept, these are forgotten.
            place: where it runs, such as the name of a backend; outputs of another place are others.
            runner: opens the model; called when the first output is not there.
        """
        self._forget_changed(model)
        # the model is opened within a block of the caller and closed after it; the outer block makes their order irrelevant
        with gradients_off(), contextlib.ExitStack() as stack:
            opened: list[Call] = []

            def call(batch: Batch) -> Any:
                key = fingerprint(batch)
                kept = None if key is None else self._models.get(model, {}).get((place, key))
                if kept is not None and (found := kept.read()) is not None:
                    return found.output
                opened[:] = opened or [stack.enter_context(runner())]
                output = opened[0](batch)
                if key is not None:
                    self._keep(model, (place, key), output)
                return output

            yield call

    def _forget_changed(self, model: nn.Module) -> None:
        with self._lock:
            state = _state(model)
            if self._states.get(model, state) != state:
                self._models.pop(model, None)
            self._states[model] = state

    def _keep(self, model: nn.Module, key: tuple[str, bytes], output: Any) -> None:
        leaves, spec = tree_flatten(output)
        leaves = [None if hasattr(leaf, "get_seq_length") else leaf for leaf in leaves]  # caches of past keys and values
        if not all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves):
            return
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(tensor.layout is not torch.strided or tensor.is_quantized for tensor in tensors):
            return
        size = sum(tensor.nbytes for tensor in tensors)
        rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        with self._lock:
            kept: _Kept | None = None
            if self._held["memory"] + size <= self.memory_bytes:
                kept = _Kept(spec, rest, places, [tensor.detach().clone() for tensor in tensors], None)
                self._count(kept, "memory", size, None)
            elif self._make_room(model, size) and (file := self._write(tensors)) is not None:
                kept = _Kept(spec, rest, places, [], file)
                self._count(kept, "disk", size, file)
            if kept is not None:
                self._models.setdefault(model, {})[key] = kept

    def _count(self, kept: _Kept, where: str, size: int, file: Path | None) -> None:
        self._held[where] += size
        weakref.finalize(kept, _release, self._held, self._lock, where, size, file)

    def _make_room(self, model: nn.Module, size: int) -> bool:
        """Whether a file of that size fits, once the outputs of other models than the first have gone as far as needed."""
        for other in [each for each in list(self._models)[1:] if each is not model]:
            if self._held["disk"] + size <= self.disk_bytes:
                break
            self._models.pop(other, None)
        return self._held["disk"] + size <= self.disk_bytes

    def _write(self, tensors: list[Tensor]) -> Path | None:
        """A file with tensors; None if there is no room for it."""
        self._files += 1
        try:
            file = self._folder.make() / f"{self._files}.pt"
            torch.save([tensor.detach().clone() for tensor in tensors], file)
        except (OSError, RuntimeError):  # torch raises the latter for a full disk
            return None
        return file


class _Found:
    """An output that was kept; an output may be None itself."""

    def __init__(self, output: Any):
        self.output = output


class _Kept:
    """One output: its structure, and its tensors in memory or in a file."""

    def __init__(self, spec: TreeSpec, rest: list[Any], places: list[int], tensors: list[Tensor], file: Path | None):
        self.spec, self.rest, self.places, self.tensors, self.file = spec, rest, places, tensors, file

    def read(self) -> _Found | None:
        """The output, which may be changed in place; None if its file is gone."""
        leaves = list(self.rest)
        try:
            tensors = [tensor.clone() for tensor in self.tensors] if self.file is None else torch.load(self.file, weights_only=True)
        except (OSError, RuntimeError):
            return None
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return _Found(tree_unflatten(leaves, self.spec))


def _release(held: dict[str, int], lock: threading.RLock, where: str, size: int, file: Path | None) -> None:
    with lock:
        held[where] -= size
    if file is not None:
        file.unlink(missing_ok=True)


def _state(model: nn.Module) -> list[tuple[str, int, str]]:
    """What differs once somebody has written to the weights: their versions, and their sums, since writes to `.data` count no version."""
    found = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        try:
            found.append((name, tensor._version, str(tensor.sum(dtype=torch.float64).item())))
        except (RuntimeError, TypeError):  # inference tensors have no version, and packed weights no sum
            found.append((name, 0, ""))
    return found


def fingerprint(batch: Batch) -> bytes | None:
    """A digest of the inputs of a batch, by value; None if an input is something else than tensors, numbers and text.

    >>> from kdkit.data import Batch
    >>> one, same, other = (Batch((torch.full((2, 3), value),)) for value in (1.0, 1.0, 2.0))
    >>> fingerprint(one) == fingerprint(same), fingerprint(one) == fingerprint(other)
    (True, False)
    """
    leaves, spec = tree_flatten((batch.args, dict(batch.kwargs)))
    digest = hashlib.sha256(str(spec).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_quantized:
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(leaf, PLAIN):
            digest.update(repr((type(leaf), leaf)).encode())
        else:
            return None
    return digest.digest()

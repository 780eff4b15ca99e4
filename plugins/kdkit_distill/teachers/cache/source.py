"""The cached source: another source's signals for the training data, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kdkit import Batch, Data, KdError
from kdkit.display import number
from kdkit_distill.signals import Signal, TopK, top_k
from kdkit_distill.teachers.cache.columns import LARGEST, Kept, is_absurd
from kdkit_distill.teachers.cache.file import Reader, Writer
from kdkit_distill.teachers.cache.items import Spans, keys
from kdkit_distill.teachers.sources import Source

if TYPE_CHECKING:
    from kdkit import Context

LOOKED_AT = 32
"""The number of items loaded twice to check whether inputs are random."""


class Cached(Source):
    """Another source's signals for the training data, computed once.

    Args:
        source: runs on each item in a first pass, or not at all if the file exists.
        path: of the file.
        data: the training data of the student.
        context: of the run.
        kept: "fp32" keeps the teacher's output bit-exact, "fp16" uses half the space.
        top: (k, temperature): keep only the k most probable classes, at this temperature.
    """

    def __init__(self, source: Source, path: str, data: Data, context: Context, kept: Kept = "fp32", top: tuple[int, float] | None = None):
        self.source, self.path, self.data, self.context, self.kept, self.top = source, Path(path).expanduser(), data, context, kept, top
        self.reader: Reader | None = None
        self.rows: np.ndarray | None = None

    @property
    def model(self) -> nn.Module | None:
        return self.source.model

    def identity(self) -> str:
        return self.source.identity()

    def open(self, device: torch.device, layers: Sequence[str] = ()) -> None:
        layers = tuple(dict.fromkeys(layers))
        identity = self.source.identity()
        self._same_each_time()
        if not self.path.exists():
            self._fill(device, layers, identity)
        self.reader = Reader(self.path)
        self._compare(identity, layers)

    def _same_each_time(self) -> None:
        """Refuse inputs that differ from pass to pass, before the teacher runs on them."""
        one, other = (self._looked_at(seed) for seed in (0, 1))
        if one is not None and other is not None and (one != other).any():
            raise KdError(
                "the inputs are random: the same items loaded twice differ, so a cached output would belong to another input",
                "leave out the random augmentation (flips, crops, noise) of the training data",
                "or augment once, and train on the result",
                "or leave out --cache, so that the teacher sees what the student sees",
            )

    def _looked_at(self, seed: int) -> np.ndarray | None:
        """The keys of the first items; None if the order is unknown, so that a second load may return other items."""
        found: list[bytes] = []
        for batch in self.data.batches(seed=seed):
            if batch.numbers is None:
                return None
            found += keys(batch).tolist()
            if len(found) >= LOOKED_AT:
                break
        return np.array(found, "S16")

    def _fill(self, device: torch.device, layers: tuple[str, ...], identity: str) -> None:
        self.source.open(device, layers)
        items = 0
        with Writer(self.path, self.kept) as writer:
            for batch in self.data.batches():
                spans = Spans.of(batch)
                signal = self.source.signal(batch.to(device))
                if signal.has_nonfinite() or any(map(is_absurd, _values(signal))):
                    where = f"to one of the items {items} to {items + batch.size - 1}"
                    raise KdError(f"the teacher's output is nan, infinite or beyond {LARGEST:g}, {where}", "evaluate the teacher first: %kd eval")
                if self.top is not None and isinstance(signal.logits, Tensor):
                    signal = replace(signal, logits=top_k(signal.logits, *self.top))
                writer.add(keys(batch, spans), spans, signal)
                items += batch.size
                self.context.progress(items, max(self.data.items or 0, items), "running the teacher once")
            writer.finish({"teacher": identity, "task": self.context.task.name, "layers": list(layers), "kept": self.kept, "top": self.top, "items": items})
        self.context.note(f"ran the teacher on {items} items, and cached its output in {self.path.name}: {number(self.path.stat().st_size / 1e6)} MB")

    def _compare(self, identity: str, layers: tuple[str, ...]) -> None:
        assert self.reader is not None
        held = self.reader.manifest
        lacking = [name for name in layers if name not in held["layers"]]
        known = self.data.items
        checks = {
            "another teacher": held["teacher"] != identity,
            f"the task {held['task']}, not {self.context.task.name}": held["task"] != self.context.task.name,
            f"another choice of layers, without {', '.join(lacking)}": bool(lacking),
            f"values kept as {held['kept']}, not {self.kept}": held["kept"] != self.kept,
            f"{_of_top(held['top'])}, not {_of_top(self.top)}": held["top"] != self.top,
            f"{held['items']} items, but the data has {known}": known is not None and known > held["items"],
        }
        wrong = next((reason for reason, met in checks.items() if met), "")
        if wrong:
            raise KdError(f"the cache {self.path} is of {wrong}", "choose another --cache file, or delete this one; kdkit then fills it again")
        self._found(self.data.example())

    def signal(self, batch: Batch) -> Signal:
        assert self.reader is not None
        spans = Spans.of(batch) if self.reader.ragged else None
        return self.reader.signal(self._remembered(batch), spans, batch.device)

    def _remembered(self, batch: Batch) -> np.ndarray:
        """The rows of a batch, by the items' numbers if they were seen before; one item of each batch is checked by its content."""
        if batch.numbers is None:
            return self._found(batch)
        numbers = batch.numbers.cpu().numpy()
        if self.rows is None or numbers.max() >= len(self.rows):
            grown = np.full(max(self.data.items or 0, int(numbers.max()) + 1), -1, np.int64)
            grown[: 0 if self.rows is None else len(self.rows)] = -1 if self.rows is None else self.rows
            self.rows = grown
        rows = self.rows[numbers]
        if (rows >= 0).all():
            sample = int(rows[0] + rows[-1]) % len(rows)
            if self._found(batch[sample : sample + 1])[0] == rows[sample]:
                return rows
        rows = self.rows[numbers] = self._found(batch)
        return rows

    def _found(self, batch: Batch) -> np.ndarray:
        assert self.reader is not None
        rows = self.reader.places(keys(batch))
        if (rows < 0).any():
            raise KdError(
                f"{int((rows < 0).sum())} of {len(rows)} inputs of a batch are not in the cache {self.path}",
                "it was filled with other data or preprocessing, or the inputs are random in each pass",
                "choose another --cache file, or delete this one; kdkit then fills it again",
            )
        return rows

    def close(self) -> None:
        self.reader = self.rows = None
        self.source.close()


def _values(signal: Signal) -> Iterator[Tensor]:
    logits = signal.logits
    yield from ((logits.values, logits.tail) if isinstance(logits, TopK) else (logits,))
    yield from signal.features.values()


def _of_top(top: Sequence[float] | None) -> str:
    return f"the {top[0]} most probable classes at temperature {top[1]:g}" if top else "all classes"

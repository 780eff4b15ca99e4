"""The source: another source's answers to the training data, asked for once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.table import number
from kdkit_distill.cache.columns import Kept
from kdkit_distill.cache.file import Reader, Writer
from kdkit_distill.cache.items import Spans, keys
from kdkit_distill.signals import Signal, top_k
from kdkit_distill.sources import Source

if TYPE_CHECKING:
    from kdkit.context import Context

LOOKED_AT = 32
"""Items that are loaded twice to see whether their inputs are random."""


class Cached(Source):
    """Another source's answers to the training data, asked for once.

    Args:
        source: asked about each item in a first pass, unless the file is there already; then it is never asked.
        path: of the file.
        data: what the student is trained on.
        context: of the run.
        kept: "fp32" keeps what the teacher says to the bit, "fp16" takes half the room.
        top: (k, temperature): of the logits only the most probable classes at a temperature are kept.
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
        """Refuse inputs that are drawn anew in each pass, before anybody is asked about them."""
        one, other = (self._looked_at(seed) for seed in (0, 1))
        if one is not None and other is not None and (one != other).any():
            raise KdError(
                "the inputs are random: the same items loaded twice differ, so a cached answer would belong to another input",
                "leave out the random augmentation (flips, crops, noise) of the training data",
                "or augment once, and train on what came out",
                "or leave out --cache, so that the teacher sees what the student sees",
            )

    def _looked_at(self, seed: int) -> np.ndarray | None:
        """The keys of the first items; None where the order is not known, so that they may be others."""
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
                if signal.sick():
                    where = f"to one of the items {items} to {items + batch.size - 1}"
                    raise KdError(f"the teacher answers with nan or infinity, {where}", "evaluate it by itself first: %kd eval")
                if self.top is not None and isinstance(signal.logits, Tensor):
                    signal = replace(signal, logits=top_k(signal.logits, *self.top))
                writer.add(keys(batch, spans), spans, signal)
                items += batch.size
                self.context.progress(items, max(self.data.items or 0, items), "asking the teacher once")
            writer.finish({"teacher": identity, "task": self.context.task.name, "layers": list(layers), "kept": self.kept, "top": self.top, "items": items})
        self.context.note(f"asked the teacher about {items} items, and kept the answers in {self.path.name}: {number(self.path.stat().st_size / 1e6)} MB")

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
            f"{_of_top(held['top'])}, not {_of_top(self.top)}": held["top"] != (list(self.top) if self.top else None),
            f"{held['items']} items, and the data has {known}": known is not None and known > held["items"],
        }
        wrong = next((told for told, met in checks.items() if met), "")
        if wrong:
            raise KdError(f"the cache {self.path} is of {wrong}", "choose another --cache file, or delete this one; it is filled anew")
        self._found(self.data.example())

    def signal(self, batch: Batch) -> Signal:
        assert self.reader is not None
        spans = Spans.of(batch) if self.reader.ragged else None
        return self.reader.signal(self._remembered(batch), spans, batch.device)

    def _remembered(self, batch: Batch) -> np.ndarray:
        """The rows of a batch, by the items' numbers where these were met before; one item a batch is looked at all the same."""
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
                "it was filled with other data or preprocessing, or the inputs are drawn anew in each pass",
                "choose another --cache file, or delete this one; it is filled anew",
            )
        return rows

    def close(self) -> None:
        self.reader = self.rows = None
        self.source.close()


def _of_top(top: Sequence[float] | None) -> str:
    return f"the {top[0]} most probable classes at temperature {top[1]:g}" if top else "all classes"

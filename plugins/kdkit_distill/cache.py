"""The teacher cache: what a teacher says of each item, asked once and kept in one memory-mapped file.

Rows are found by content: a 16-byte hash of an item's inputs as the model gets them. So neither order, shuffling nor the
size of batches matters, and an input that was never asked about can't be mistaken for one that was. Padding (by
`attention_mask`) belongs to a batch and not to an item, and is left out of hash and row.

The file: a magic word; the rows, one after another; then, for all rows, keys, places and lengths; a manifest in JSON; and
where that begins. It is written beside its place and moved there when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.table import number
from kdkit_distill.signals import Signal, TopK, top_k
from kdkit_distill.sources import Source

if TYPE_CHECKING:
    from kdkit.context import Context

FORMAT = 1
"""The number of the file's format."""

MAGIC, END = b"kdkit teacher cache\n", b"kdkitend"
_TAIL = struct.Struct("<Q8s")
_LOOKED_AT = 32
"""Items that are loaded twice to see whether their inputs are random."""

Kept = Literal["fp32", "fp16"]


# Items -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spans:
    """Where the items of a token batch begin and how long they are; what is outside is padding.

    >>> found = Spans.of(Batch(kwargs={"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]])}))
    >>> found.first.tolist(), found.length.tolist(), found.tokens
    ([0, 1], [3, 2], 4)
    """

    first: np.ndarray
    length: np.ndarray
    tokens: int

    @classmethod
    def of(cls, batch: Batch) -> Spans | None:
        """Those of a batch; None where its inputs are no tokens."""
        mask = batch.kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask.detach().cpu().numpy() != 0
            some = real.any(1)
            first = np.where(some, real.argmax(1), 0)
            last = np.where(some, real.shape[1] - real[:, ::-1].argmax(1), 0)
            return cls(first, last - first, real.shape[1])
        inputs = (*batch.args, *batch.kwargs.values())
        tokens = next((item for item in inputs if isinstance(item, Tensor) and item.ndim == 2 and not item.is_floating_point() and not item.is_complex()), None)
        if tokens is None:
            return None
        return cls(np.zeros(len(tokens), np.int64), np.full(len(tokens), tokens.shape[1]), tokens.shape[1])


def keys(batch: Batch, spans: Spans | None = None) -> np.ndarray:
    """A hash of each item's inputs: (batch,) of 16 bytes; names, types, shapes and values count, labels and padding do not.

    >>> one, other = keys(Batch((torch.tensor([[1.0], [2.0]]),))), keys(Batch((torch.tensor([[2.0], [1.0]]),)))
    >>> bool((one == other[::-1]).all()), bool((one == other).any())
    (True, False)
    """
    spans = spans or Spans.of(batch)
    named = [*((str(index), item) for index, item in enumerate(batch.args)), *sorted(batch.kwargs.items())]
    begun = hashlib.blake2b(digest_size=16)
    columns: list[tuple[np.ndarray, int]] = []
    for name, item in named:
        if not isinstance(item, Tensor):
            begun.update(f"{name} {item!r};".encode())
            continue
        along = spans is not None and item.ndim > 1 and item.shape[1] == spans.tokens
        if name == "attention_mask" and spans is not None and _all_real(item, spans):
            continue
        begun.update(f"{name} {item.dtype} {tuple(item.shape[2 if along else 1 :])};".encode())
        columns.append((_bytes(item), item.shape[1] if along else 0))
    found = []
    for row in range(batch.size):
        each = begun.copy()
        for values, tokens in columns:
            if tokens and spans is not None:
                width, first = values.shape[1] // tokens, int(spans.first[row])
                each.update(struct.pack("<q", spans.length[row]))
                each.update(values[row, first * width : (first + int(spans.length[row])) * width].data)
            else:
                each.update(values[row].data)
        found.append(each.digest())
    return np.array(found, dtype="S16")


def _all_real(mask: Tensor, spans: Spans) -> bool:
    """Whether a mask says no more than where items begin and end."""
    return mask.ndim == 2 and bool(((mask != 0).sum(1).cpu().numpy() == spans.length).all())


def _bytes(tensor: Tensor) -> np.ndarray:
    """(items, bytes of an item), uint8."""
    flat = tensor.detach().cpu().contiguous().reshape(len(tensor), -1)
    return flat.view(torch.uint8).numpy()


# Rows ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """One part of a row.

    Attributes:
        name: "logits", "feature NAME", or a part of a top-k distribution.
        stored: type in the file, or "bits" for class numbers packed as tightly as they go.
        given: the torch type that the teacher gave, and a reader gets.
        shape: of what stands at one item, or at one token.
        tokens: whether a row has as many as its item has tokens.
        bits: of one number, where they are packed.
    """

    name: str
    stored: str
    given: str
    shape: tuple[int, ...]
    tokens: bool
    bits: int = 0

    @property
    def width(self) -> int:
        """Bytes at one item, or at one token."""
        numbers = math.prod(self.shape)
        return -(-numbers * self.bits // 8) if self.bits else numbers * np.dtype(self.stored).itemsize

    def write(self, values: np.ndarray) -> np.ndarray:
        """(..., width) bytes of (..., *shape) values."""
        flat = values.reshape(*values.shape[: values.ndim - len(self.shape)], -1)
        if self.bits:
            spread = np.unpackbits(np.ascontiguousarray(flat, ">u4").view(np.uint8).reshape(*flat.shape, 4), axis=-1)[..., 32 - self.bits :]
            return np.packbits(spread.reshape(*flat.shape[:-1], -1), axis=-1)
        return np.ascontiguousarray(flat, self.stored).view(np.uint8)

    def read(self, found: np.ndarray) -> Tensor:
        """(..., *shape) values of (..., width) bytes."""
        shape = (*found.shape[:-1], *self.shape)
        if self.bits:
            spread = np.unpackbits(found, axis=-1)[..., : math.prod(self.shape) * self.bits].reshape(*shape, self.bits)
            return torch.from_numpy(spread.astype(np.int64) @ (1 << np.arange(self.bits)[::-1]))
        values = torch.from_numpy(np.ascontiguousarray(found).view(self.stored).reshape(shape))
        return values.to(getattr(torch, self.given))


def _columns(signal: Signal, spans: Spans | None, kept: Kept) -> dict[Column, np.ndarray]:
    """A signal as columns, with the values of each."""
    logits = signal.logits
    named: dict[str, Tensor] = {f"feature {name}": values for name, values in signal.features.items()}
    if isinstance(logits, TopK):
        named |= {"values": logits.values, "tail": logits.tail, "indices": logits.indices}
    else:
        named |= {"logits": logits}
    found = {}
    for name, values in sorted(named.items()):
        along = spans is not None and values.ndim > (1 if name == "tail" else 2) and values.shape[1] == spans.tokens
        shape = tuple(values.shape[2 if along else 1 :])
        given = str(values.dtype).removeprefix("torch.")
        if name == "indices" and isinstance(logits, TopK):
            found[Column(name, "bits", given, shape, along, max(1, (logits.classes - 1).bit_length()))] = values.cpu().numpy()
            continue
        stored = "float16" if kept == "fp16" and values.is_floating_point() else "float32" if given in ("bfloat16", "float16") else given
        plain = values.detach().cpu().to(getattr(torch, stored))
        if stored == "float16" and bool((torch.isinf(plain) & ~torch.isinf(values.detach().cpu())).any()):
            raise KdError(f"{name} of the teacher is too large for fp16, above 65504", "keep it whole: --cache-as fp32")
        found[Column(name, stored, given, shape, along)] = plain.numpy()
    return found


class Writer:
    """Writes a cache beside its place, and moves it there when it is whole; a context manager that leaves nothing half done."""

    def __init__(self, path: Path, kept: Kept):
        self.path, self.kept = path, kept
        self.part = path.with_name(f"{path.name}.{os.getpid()}.part")
        self.columns: list[Column] | None = None
        self.keys: list[bytes] = []
        self.known: set[bytes] = set()
        self.lengths: list[int] = []
        self.offsets = [0]
        self.topk: dict[str, Any] | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("wb")
            self._file.write(MAGIC)
        except OSError as error:
            raise KdError(f"can't write the cache {self.path}: {error.strerror or error}", "choose a --cache file that you may write to") from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self.part.unlink(missing_ok=True)

    def add(self, found: np.ndarray, spans: Spans | None, signal: Signal) -> None:
        """Rows of a batch; an item that was there already is left out.

        Raises:
            KdError: it has another form than what was there before.
        """
        held = _columns(signal, spans, self.kept)
        if isinstance(signal.logits, TopK):
            self.topk = {"classes": signal.logits.classes, "temperature": signal.logits.temperature}
        if self.columns is None:
            self.columns = list(held)
        elif self.columns != list(held):
            raise KdError(
                f"the teacher's answers differ in form from batch to batch: {_told(self.columns)}, then {_told(list(held))}",
                "bring all inputs to one size, or give an attention_mask that tells the padding",
            )
        written = [(column, column.write(values)) for column, values in held.items()]
        for row, key in enumerate(found.tolist()):
            if key in self.known:
                continue
            self.known.add(key)
            self.keys.append(key)
            self.lengths.append(int(spans.length[row]) if spans is not None else 0)
            self._append([_of_item(values[row], column, spans, row) for column, values in written])

    def _append(self, parts: Sequence[np.ndarray]) -> None:
        assert self._file is not None
        for part in parts:
            self._file.write(np.ascontiguousarray(part).data)
        self.offsets.append(self.offsets[-1] + sum(part.nbytes for part in parts))

    def finish(self, facts: dict[str, Any]) -> None:
        """Make it whole, and put it in its place."""
        assert self._file is not None
        manifest = facts | {"kdkit_teacher_cache": FORMAT, "rows": len(self.keys), "top_k": self.topk, "columns": [asdict(column) for column in self.columns or []]}
        manifest["bytes"] = self.offsets[-1]
        self._file.write(np.array(self.keys, "S16").tobytes())
        self._file.write(np.array(self.offsets, "<u8").tobytes())
        self._file.write(np.array(self.lengths, "<u4").tobytes())
        at = self._file.tell()
        self._file.write(json.dumps(manifest).encode())
        self._file.write(_TAIL.pack(at, END))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.part, self.path)


def _of_item(values: np.ndarray, column: Column, spans: Spans | None, row: int) -> np.ndarray:
    if not column.tokens or spans is None:
        return values
    return values[spans.first[row] : spans.first[row] + spans.length[row]]


def _told(columns: Sequence[Column]) -> str:
    return ", ".join(f"{column.name} {column.given} {('tokens', *column.shape) if column.tokens else column.shape}" for column in columns)


class Reader:
    """A cache that is there, memory-mapped.

    Raises:
        KdError: it is no cache, of another format, or not whole.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise KdError(f"{path} is no teacher cache", "choose another --cache file")
                file.seek(max(0, size - _TAIL.size))
                at, end = _TAIL.unpack(file.read(_TAIL.size))
                if end != END or at > size:
                    raise ValueError("its end is missing")
                file.seek(at)
                self.manifest = json.loads(file.read(size - _TAIL.size - at))
            if self.manifest["kdkit_teacher_cache"] != FORMAT:
                raise KdError(f"the cache {path} has format {self.manifest['kdkit_teacher_cache']}; this kdkit reads {FORMAT}", "update kdkit, or choose another file")
            self._map(at)
        except KdError:
            raise
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise KdError(f"the cache {path} is damaged: {error}", "delete it, and it is filled anew") from error

    def _map(self, at: int) -> None:
        rows, held = self.manifest["rows"], self.manifest["bytes"]
        if len(MAGIC) + held + rows * 16 + (rows + 1) * 8 + rows * 4 != at:
            raise ValueError("its parts do not add up")
        whole = np.memmap(self.path, np.uint8, "r")
        place = len(MAGIC)

        def taken(count: int, kind: str) -> np.ndarray:
            nonlocal place
            found = whole[place : place + count * np.dtype(kind).itemsize].view(kind)
            place += found.nbytes
            return found

        self.rows = taken(held, "u1")
        unsorted = np.array(taken(rows, "S16"))
        self.order = np.argsort(unsorted, kind="stable")
        self.keys = unsorted[self.order]
        self.offsets = np.array(taken(rows + 1, "<u8")).astype(np.int64)
        self.lengths = np.array(taken(rows, "<u4")).astype(np.int64)
        self.columns = [Column(**{**each, "shape": tuple(each["shape"])}) for each in self.manifest["columns"]]
        self.ragged = any(column.tokens for column in self.columns)
        if not self.ragged:
            self.matrix = np.asarray(self.rows).reshape(rows, -1)

    def places(self, found: np.ndarray) -> np.ndarray:
        """The row of each key, -1 where there is none."""
        at = np.minimum(np.searchsorted(self.keys, found), len(self.keys) - 1)
        return np.where(self.keys[at] == found, self.order[at], -1)

    def signal(self, rows: np.ndarray, spans: Spans | None, device: torch.device | str = "cpu") -> Signal:
        """What the rows hold; tokens stand where the batch has them, and zeros in its padding."""
        parts = self._ragged(rows, spans) if self.ragged else self._fixed(rows)
        named = {column.name: values.to(device, non_blocking=True) for column, values in parts}
        features = {name.removeprefix("feature "): values for name, values in named.items() if name.startswith("feature ")}
        top = self.manifest["top_k"]
        logits = named["logits"] if top is None else TopK(named["values"], named["indices"], named["tail"], top["classes"], top["temperature"])
        return Signal(logits, features)

    def _fixed(self, rows: np.ndarray) -> Iterator[tuple[Column, Tensor]]:
        found, at = self.matrix.take(rows, axis=0), 0
        for column in self.columns:
            yield column, column.read(found[:, at : at + column.width])
            at += column.width

    def _ragged(self, rows: np.ndarray, spans: Spans | None) -> Iterator[tuple[Column, Tensor]]:
        if spans is None:
            raise KdError("the cache holds a row a token, and these inputs are no tokens", "another --cache file is filled for them")
        blocks = {}
        for column in self.columns:
            shape = (len(rows), spans.tokens, column.width) if column.tokens else (len(rows), column.width)
            blocks[column] = np.zeros(shape, np.uint8)
        for index, row in enumerate(rows.tolist()):
            at, length, first = int(self.offsets[row]), int(self.lengths[row]), int(spans.first[index])
            for column, block in blocks.items():
                size = column.width * (length if column.tokens else 1)
                held = self.rows[at : at + size]
                if column.tokens:
                    block[index, first : first + length] = held.reshape(length, column.width)
                else:
                    block[index] = held
                at += size
        for column, block in blocks.items():
            yield column, column.read(block)


# The source ------------------------------------------------------------------------------------------------------------


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
            if len(found) >= _LOOKED_AT:
                break
        return np.array(found, "S16")

    def _fill(self, device: torch.device, layers: tuple[str, ...], identity: str) -> None:
        self.source.open(device, layers)
        items = 0
        with Writer(self.path, self.kept) as writer:
            for batch in self.data.batches():
                spans = Spans.of(batch)
                signal = self.source.signal(batch.to(device))
                if signal.nan():
                    raise KdError(f"the teacher answers with nan, to one of the items {items} to {items + batch.size - 1}", "evaluate it by itself first: %kd eval")
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
        device = next(item.device for item in (*batch.args, *batch.kwargs.values()) if isinstance(item, Tensor))
        spans = Spans.of(batch) if self.reader.ragged else None
        return self.reader.signal(self._remembered(batch), spans, device)

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

"""The file: rows of bytes, found by the keys of their items, memory-mapped.

A magic word; the rows, one after another; then, for all rows, keys, places and lengths; a manifest in JSON; and where that
begins. It is written beside its place and moved there when it is whole.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from kdkit.errors import KdError
from kdkit_distill.cache.columns import Column, Kept, columns_of, told
from kdkit_distill.cache.items import Spans
from kdkit_distill.signals import Signal, TopK

FORMAT = 1
"""The number of the file's format."""

MAGIC, END = b"kdkit teacher cache\n", b"kdkitend"
_TAIL = struct.Struct("<Q8s")


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
        held = columns_of(signal, spans, self.kept)
        if isinstance(signal.logits, TopK):
            self.topk = {"classes": signal.logits.classes, "temperature": signal.logits.temperature}
        if self.columns is None:
            self.columns = list(held)
        elif self.columns != list(held):
            raise KdError(
                f"the teacher's answers differ in form from batch to batch: {told(self.columns)}, then {told(list(held))}",
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


class Reader:
    """A cache that is there, memory-mapped.

    Raises:
        KdError: it is no cache, of another format, or not whole.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.is_dir():
            raise KdError(f"{path} is a folder, and a cache is one file", f"--cache {path}/teacher.kd")
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

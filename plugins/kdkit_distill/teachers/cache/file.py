"""The file: rows of bytes, found by the keys of their items, memory-mapped and verified as they are read.

Format: a magic word; the rows; the index, which is the keys, positions and lengths of all rows and the checksums of their blocks; a
manifest in JSON; the positions of index and manifest and a checksum over both. The file is written under a temporary name in the
same folder, and renamed when it is complete. Format 1 had no checksums.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from kdkit import KdError
from kdkit.storage import read_record, replace_file
from kdkit_distill.signals import Signal, TopK
from kdkit_distill.teachers.cache.checksums import BLOCK, WIDTH, BlockReader, BlockWriter, checksum
from kdkit_distill.teachers.cache.columns import LARGEST, Column, Kept, columns_of, describe_columns, is_absurd
from kdkit_distill.teachers.cache.items import Spans
from kdkit_distill.teachers.cache.manifest import FORMAT, LARGEST_BYTES, Manifest

MAGIC, END, END_OF_1 = b"kdkit teacher cache\n", b"kdkitsum", b"kdkitend"
_TAIL, _TAIL_OF_1 = struct.Struct("<QQ16s8s"), struct.Struct("<Q8s")


class Writer:
    """Writes a cache under a temporary name, and renames it at the end; a context manager that deletes an incomplete file."""

    def __init__(self, path: Path, kept: Kept):
        self.path, self.kept = path, kept
        self.columns: list[Column] | None = None
        self.keys: list[bytes] = []
        self.known: set[bytes] = set()
        self.lengths: list[int] = []
        self.offsets = [0]
        self.topk: dict[str, Any] | None = None
        self._blocks = BlockWriter()
        self._target = contextlib.ExitStack()
        self._file: IO[bytes]

    def __enter__(self) -> Self:
        with self._reported():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._target.enter_context(replace_file(self.path))
            self._file.write(MAGIC)
        return self

    def __exit__(self, *error: Any) -> None:
        with self._reported():
            self._target.__exit__(*error)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KdError(f"can't write the cache {self.path}: {error.strerror or error}", "choose a --cache file that you may write to, with room for it") from error

    def add(self, found: np.ndarray, spans: Spans | None, signal: Signal) -> None:
        """Add the rows of a batch; items that are already in the file are skipped.

        Raises:
            KdError: its columns differ from those of earlier batches.
        """
        held = columns_of(signal, spans, self.kept)
        if isinstance(signal.logits, TopK):
            self.topk = {"classes": signal.logits.classes, "temperature": signal.logits.temperature}
        if self.columns is None:
            self.columns = list(held)
        elif self.columns != list(held):
            raise KdError(
                f"the teacher's outputs differ in shape or type between batches: {describe_columns(self.columns)}, then {describe_columns(list(held))}",
                "use inputs of one size, or pass an attention_mask that marks padding",
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
        with self._reported():
            for part in parts:
                data = np.ascontiguousarray(part).reshape(-1).data
                self._file.write(data)
                self._blocks.update(data)
        self.offsets.append(self.offsets[-1] + sum(part.nbytes for part in parts))

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the index and the manifest."""
        manifest = facts | {"kdkit_teacher_cache": FORMAT, "rows": len(self.keys), "top_k": self.topk, "columns": [asdict(column) for column in self.columns or []]}
        manifest["bytes"] = self.offsets[-1]
        index = b"".join([np.array(self.keys, "S16").tobytes(), np.array(self.offsets, "<u8").tobytes(), np.array(self.lengths, "<u4").tobytes(), self._blocks.finish()])
        text = json.dumps(manifest).encode()
        at = len(MAGIC) + self.offsets[-1]
        with self._reported():
            self._file.write(index + text + _TAIL.pack(at, at + len(index), checksum(index + text, 16), END))


def _of_item(values: np.ndarray, column: Column, spans: Spans | None, row: int) -> np.ndarray:
    if not column.tokens or spans is None:
        return values
    return values[spans.first[row] : spans.first[row] + spans.length[row]]


class Reader:
    """An existing cache, memory-mapped.

    Raises:
        KdError: it is not a cache, of another format, or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.is_dir():
            raise KdError(f"{path} is a folder, but a cache is one file", f"--cache {path}/teacher.kd")
        with self._reported():
            if not path.is_file():
                raise KdError(f"{path} is not a file", "choose another --cache file")
            with path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise KdError(f"{path} is not a teacher cache", "choose another --cache file")
            self._whole = np.memmap(path, np.uint8, "r")
            self._map(*self._read_tail())

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """A block in which a wrong part of the file is one message."""
        try:
            yield
        except (OSError, ValueError, struct.error) as error:
            raise KdError(f"the cache {self.path} is damaged: {error}", "delete it; kdkit then fills it again") from error

    def _read_tail(self) -> tuple[int, Manifest]:
        """(position of the index, manifest), the checksum of both verified."""
        size, marker = len(self._whole), self._part(len(self._whole) - len(END), len(self._whole))
        if marker == END_OF_1:
            at, _ = _TAIL_OF_1.unpack(self._part(size - _TAIL_OF_1.size, size))
            text, start = self._manifest_text(at, size - _TAIL_OF_1.size), None
        elif marker == END:
            start, at, expected, _ = _TAIL.unpack(self._part(size - _TAIL.size, size))
            text = self._manifest_text(at, size - _TAIL.size)
            if checksum(self._part(start, size - _TAIL.size), 16) != expected:
                raise ValueError("the checksum of its index differs")
        else:
            raise ValueError("its end is missing")
        manifest = read_record(Manifest, text)
        index = at - manifest.rows * (16 + 8 + 4) - 8 if start is None else start
        if manifest.kdkit_teacher_cache != (1 if start is None else FORMAT) or index != len(MAGIC) + manifest.bytes:
            raise ValueError("its parts are inconsistent")
        return index, manifest

    def _part(self, start: int, end: int) -> bytes:
        if not len(MAGIC) <= start <= end <= len(self._whole):
            raise ValueError("it is cut off")
        return self._whole[start:end].tobytes()

    def _manifest_text(self, at: int, end: int) -> bytes:
        if end - at > LARGEST_BYTES:
            raise ValueError("its manifest is too large")
        text = self._part(at, end)
        newer = re.search(rb'"kdkit_teacher_cache": *(\d{1,9})\b', text)
        if newer and int(newer[1]) > FORMAT:
            raise KdError(f"the cache {self.path} has format {int(newer[1])}; this kdkit reads {FORMAT}", "update kdkit, or choose another file")
        return text

    def _map(self, index: int, manifest: Manifest) -> None:
        rows, place = manifest.rows, index
        blocks = -(-manifest.bytes // BLOCK) * WIDTH if manifest.kdkit_teacher_cache == FORMAT else 0

        def taken(count: int, kind: str) -> np.ndarray:
            nonlocal place
            found = np.frombuffer(self._part(place, place + count * np.dtype(kind).itemsize), kind)
            place += found.nbytes
            return found

        unsorted = taken(rows, "S16")
        self.order = np.argsort(unsorted, kind="stable")
        self.keys = unsorted[self.order]
        self.offsets, self.lengths = taken(rows + 1, "<u8").astype(np.int64), taken(rows, "<u4").astype(np.int64)
        self.blocks = BlockReader(self._whole[len(MAGIC) : len(MAGIC) + manifest.bytes], taken(blocks, "u1").tobytes())
        self.rows, self.columns, self.manifest = self.blocks.rows, manifest.columns, manifest.model_dump()
        self.ragged = any(column.tokens for column in self.columns)
        widths = [sum(column.width for column in self.columns if column.tokens is along) for along in (False, True)]
        if self.offsets[0] != 0 or self.offsets[-1] != manifest.bytes or (np.diff(self.offsets) != widths[0] + widths[1] * self.lengths).any():
            raise ValueError("the positions of its rows are inconsistent")
        if not self.ragged:
            self.matrix = np.asarray(self.rows).reshape(rows, -1)

    def places(self, found: np.ndarray) -> np.ndarray:
        """The row of each key, -1 if it is not in the file."""
        at = np.minimum(np.searchsorted(self.keys, found), len(self.keys) - 1)
        return np.where(self.keys[at] == found, self.order[at], -1)

    def signal(self, rows: np.ndarray, spans: Spans | None, device: torch.device | str = "cpu") -> Signal:
        """The signal of the rows; tokens have the positions of the batch, and padding is zero.

        Raises:
            KdError: the rows were changed since they were written, or hold values that no loss can use.
        """
        with self._reported():
            self.blocks.verify(self.offsets[rows], self.offsets[rows + 1])
            read = dict(self._ragged(rows, spans) if self.ragged else self._fixed(rows))
            self._check_values(read)
        named = {column.name: values.to(device, non_blocking=True) for column, values in read.items()}
        features = {name.removeprefix("feature "): values for name, values in named.items() if name.startswith("feature ")}
        top = self.manifest["top_k"]
        logits = named["logits"] if top is None else TopK(named["values"], named["indices"], named["tail"], top["classes"], top["temperature"])
        return Signal(logits, features)

    def _check_values(self, read: dict[Column, Tensor]) -> None:
        top = self.manifest["top_k"]
        for column, values in read.items():
            if is_absurd(values):
                raise ValueError(f"its {column.name} hold nan, infinity or a number beyond {LARGEST:g}")
            if top is not None and column.name == "indices" and int(values.max()) >= top["classes"]:
                raise ValueError(f"its indices go beyond its {top['classes']} classes")

    def _fixed(self, rows: np.ndarray) -> Iterator[tuple[Column, Tensor]]:
        found, at = self.matrix.take(rows, axis=0), 0
        for column in self.columns:
            yield column, column.read(found[:, at : at + column.width])
            at += column.width

    def _ragged(self, rows: np.ndarray, spans: Spans | None) -> Iterator[tuple[Column, Tensor]]:
        if spans is None:
            raise KdError("the cache has values for tokens, but these inputs are not tokens", "use another --cache file for them")
        if (self.lengths[rows] != spans.length).any():
            raise ValueError("a row has another number of tokens than its item")
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

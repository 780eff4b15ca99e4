"""The codec of `encode entropy`: tensors as entropy-coded symbols, or compressed as files are.

Huffman codes are kdkit's own. Asymmetric numeral systems (Duda, "Asymmetric numeral systems", 2009, arXiv:0902.0271) are those of the library
constriction; they come within a fraction of a percent of Shannon's bound. zlib and lzma are what a user would do without any of this.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kdkit_quantize.encoding import huffman
from kdkit_quantize.encoding.symbols import Symbols, symbols_of, tensor_of

Code = Literal["huffman", "ans", "zlib", "lzma"]
OVERHEAD = 160
"""Bytes that an encoded tensor costs besides its parts: its facts, and the entries of its parts in the file's head."""
PRECISION = 2**16
"""The frequencies of symbols, of which the coder needs the same ones again, are counted out of so many."""

_FILES: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "zlib": (lambda data: zlib.compress(data, 9), zlib.decompress),
    "lzma": (lambda data: lzma.compress(data, lzma.FORMAT_ALONE, preset=6), lzma.decompress),
}


def encode(tensor: Tensor, code: Code = "huffman") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A tensor in fewer bytes; None if that saves nothing.

    Args:
        tensor: plain, on the CPU.
        code: huffman or ans code symbols one by one, zlib and lzma look for repetitions as well.

    >>> parts, facts = encode(torch.tensor([0.0, 0.0, 0.5, 0.0] * 1000))
    >>> sum(part.nbytes for part in parts.values()) < 700, facts["kind"]
    (True, 'table')
    """
    if not tensor.numel() or not tensor.dim() or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        return None
    facts: dict[str, Any] = {"code": code, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if code in _FILES:
        content = _FILES[code][0](tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        parts = {"content": _bytes(np.frombuffer(content, np.uint8))}
    else:
        symbols = symbols_of(tensor)
        parts = {} if symbols.table is None else {"table": symbols.table}
        coded = [_encode_stream(stream, code) for stream in symbols.streams]
        parts |= {f"stream{index}": torch.cat([_bytes(piece) for piece in pieces]) for index, pieces in enumerate(coded)}
        sizes = [[len(stream), *(piece.nbytes for piece in pieces[:-1])] for stream, pieces in zip(symbols.streams, coded, strict=True)]
        facts |= {"kind": symbols.kind, "width": symbols.width, "sizes": sizes}
    return (parts, facts) if sum(part.nbytes for part in parts.values()) + OVERHEAD < tensor.nbytes else None


def decode(parts: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Tensor:
    """The tensor that `encode` encoded, bit for bit."""
    dtype = getattr(torch, facts["dtype"])
    if facts["code"] in _FILES:
        content = _FILES[facts["code"]][1](parts["content"].numpy().tobytes())
        return torch.frombuffer(bytearray(content), dtype=dtype).reshape(facts["shape"])
    streams = [_decode_stream(parts[f"stream{index}"].numpy(), sizes, facts["code"]) for index, sizes in enumerate(facts["sizes"])]
    return tensor_of(Symbols(facts["kind"], streams, parts.get("table"), facts["width"]), facts["shape"], dtype)


def _encode_stream(symbols: np.ndarray, code: str) -> list[np.ndarray]:
    """The model of a stream's symbols, what else is needed, and the coded symbols; the symbols alone, if that is shorter."""
    counts = np.bincount(symbols)
    plain = symbols.astype(np.uint8 if len(counts) <= 256 else np.uint16)
    if code == "huffman":
        lengths = huffman.code_lengths(counts)
        stream, blocks = huffman.encode(symbols, lengths)
        pieces = [lengths, blocks, stream]
    else:
        import constriction

        frequencies = _frequencies(counts)
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, _model(frequencies))
        pieces = [frequencies, coder.get_compressed()]
    return pieces if sum(piece.nbytes for piece in pieces) < plain.nbytes else [plain]


def _decode_stream(coded: np.ndarray, sizes: list[int], code: str) -> np.ndarray:
    """The symbols of a stream.

    Args:
        coded: the bytes of all pieces.
        sizes: symbols, and the bytes of each piece but the last.
    """
    count, *lengths = sizes
    if not lengths:
        return coded if len(coded) == count else coded.copy().view(np.uint16)
    pieces = np.split(coded, np.cumsum(lengths))
    if code == "huffman":
        return huffman.decode(pieces[2], pieces[1].copy().view(np.uint16), pieces[0], count)
    import constriction

    model = _model(pieces[0].copy().view(np.uint16))
    return constriction.stream.stack.AnsCoder(pieces[1].copy().view(np.uint32)).decode(model, count)


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """The counts in proportion, as uint16: at least 1 for each symbol that occurs."""
    scaled = np.round(counts * ((PRECISION - 1) / counts.max())).astype(np.uint16)
    return np.maximum(scaled, (counts > 0).astype(np.uint16))


def _model(frequencies: np.ndarray) -> Any:
    import constriction

    padded = np.append(frequencies, 0) if len(frequencies) == 1 else frequencies  # a model has at least two symbols
    return constriction.stream.model.Categorical(padded.astype(np.float64) / padded.sum(dtype=np.float64), perfect=False)


def _bytes(content: np.ndarray) -> Tensor:
    return torch.from_numpy(np.frombuffer(content.tobytes(), np.uint8).copy())

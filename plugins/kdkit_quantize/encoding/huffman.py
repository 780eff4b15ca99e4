"""Huffman codes: a frequent symbol takes few bits, each a whole number of them.

Huffman, "A Method for the Construction of Minimum-Redundancy Codes", 1952. The codes are canonical, so that their lengths alone restore them.
The stream is cut into blocks whose first bits are known, and all blocks are decoded at once.
"""

from __future__ import annotations

import heapq

import numpy as np

LONGEST = 15
"""Bits of a code at most: a table of 2^15 entries decodes any of them."""


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """The bits of each symbol's code, uint8; 0 for symbols that do not occur.

    Codes longer than 15 bits are avoided by halving the counts, which costs next to nothing.

    Args:
        counts: how often each symbol occurs.

    >>> code_lengths(np.array([5, 1, 0, 2]))
    array([1, 2, 0, 2], dtype=uint8)
    """
    counts = counts.astype(np.int64)
    while True:
        lengths = _lengths(counts)
        if lengths.max(initial=0) <= LONGEST:
            return lengths
        counts = (counts + 1) // 2


def _lengths(counts: np.ndarray) -> np.ndarray:
    lengths = np.zeros(len(counts), np.uint8)
    heap: list[tuple[int, int, list[int]]] = [(int(count), symbol, [symbol]) for symbol, count in enumerate(counts) if count]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (one, first, left), (other, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in (*left, *right):
            lengths[symbol] += 1
        heapq.heappush(heap, (one + other, first, left + right))
    return lengths


def canonical_codes(lengths: np.ndarray) -> np.ndarray:
    """The code of each symbol as a number: shorter codes first, then by symbol.

    >>> canonical_codes(np.array([1, 2, 0, 2]))
    array([0, 2, 0, 3])
    """
    codes, code, before = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in sorted(np.flatnonzero(lengths), key=lambda symbol: (lengths[symbol], symbol)):
        code <<= int(lengths[symbol]) - before
        codes[symbol], before = code, int(lengths[symbol])
        code += 1
    return codes


def block_size(count: int) -> int:
    """Symbols in a block: few blocks for a short stream, and short loops for a long one.

    >>> block_size(100), block_size(10**6), block_size(10**9)
    (256, 4000, 4096)
    """
    return min(max(256, 4 * int(count**0.5)), 4096)


def encode(symbols: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the stream in bytes, the bits of each block as uint16).

    Args:
        symbols: one-dimensional integers, each with a code.
        lengths: of the codes, from `code_lengths`.
    """
    each, codes = lengths[symbols].astype(np.int64), canonical_codes(lengths)[symbols]
    ends = np.cumsum(each)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(int(each.max(initial=0))):
        longer = each > place
        bits[(ends - each)[longer] + place] = codes[longer] >> (each[longer] - 1 - place) & 1
    starts = np.arange(0, len(symbols), block_size(len(symbols)))
    return np.packbits(bits), np.add.reduceat(each, starts).astype(np.uint16) if len(symbols) else np.zeros(0, np.uint16)


def decode(stream: np.ndarray, blocks: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """The symbols that `encode` encoded, as int64.

    Args:
        stream, blocks: from `encode`.
        lengths: of the codes.
        count: of symbols.

    >>> symbols = np.array([0, 0, 3, 0, 1])
    >>> lengths = code_lengths(np.bincount(symbols))
    >>> decode(*encode(symbols, lengths), lengths, 5)
    array([0, 0, 3, 0, 1])
    """
    if not count:
        return np.zeros(0, np.int64)
    table = _table(lengths)
    size = block_size(count)
    padded = np.concatenate([stream, np.zeros(3, np.uint8)]).astype(np.int64)
    places = np.cumsum(blocks.astype(np.int64)) - blocks
    found = np.zeros((size, len(blocks)), np.int64)
    for step in range(min(size, count)):
        byte = places >> 3
        window = (padded[byte] << 16 | padded[byte + 1] << 8 | padded[byte + 2]) >> (24 - LONGEST - (places & 7)) & (1 << LONGEST) - 1
        found[step] = table[window]
        places = np.minimum(places + lengths[found[step]], 8 * len(stream))  # the last block may be shorter
    return found.T.reshape(-1)[:count]


def _table(lengths: np.ndarray) -> np.ndarray:
    """For each window of 15 bits the symbol whose code it begins with."""
    table, codes = np.zeros(1 << LONGEST, np.int64), canonical_codes(lengths)
    for symbol in np.flatnonzero(lengths):
        rest = LONGEST - int(lengths[symbol])
        table[codes[symbol] << rest : (codes[symbol] + 1) << rest] = symbol
    return table

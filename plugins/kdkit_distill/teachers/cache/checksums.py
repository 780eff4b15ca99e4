"""Checksums: one for each block of the rows, so that a block is verified when it is first read, and never twice.

The first pass over a cache of 33 MB (8192 rows of 1000 float32 logits, in memory already) takes 2.1 times the CPU time of reading alone in
order, and 1.7 times shuffled; the second pass takes 0.93 and 0.97 times (medians of 15 interleaved pairs, one thread).
"""

from __future__ import annotations

import hashlib

import numpy as np

BLOCK = 2**20
"""Bytes of rows that share a checksum."""

WIDTH = 8
"""Bytes of a checksum."""


def checksum(part: bytes | memoryview, width: int = WIDTH) -> bytes:
    """The digest of some bytes."""
    return hashlib.blake2b(part, digest_size=width).digest()


class BlockWriter:
    """Takes bytes in any pieces, and makes a checksum of each block.

    >>> whole, pieces = BlockWriter(), BlockWriter()
    >>> whole.update(memoryview(bytes(BLOCK + 5)))
    >>> for _ in range(BLOCK + 5): pieces.update(memoryview(bytes(1)))
    >>> whole.finish() == pieces.finish(), len(whole.finish()) // WIDTH
    (True, 2)
    """

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._begin()

    def _begin(self) -> None:
        self._hash, self._room = hashlib.blake2b(digest_size=WIDTH), BLOCK

    def update(self, part: memoryview) -> None:
        """Take the next bytes."""
        while part:
            self._hash.update(part[: self._room])
            taken = min(len(part), self._room)
            part, self._room = part[taken:], self._room - taken
            if not self._room:
                self._digests.append(self._hash.digest())
                self._begin()

    def finish(self) -> bytes:
        """The checksums of all blocks, the last one perhaps of fewer bytes."""
        return b"".join([*self._digests, *([self._hash.digest()] if self._room < BLOCK else [])])


class BlockReader:
    """The rows of a file and the checksums of their blocks.

    Args:
        rows: (bytes,) uint8.
        digests: as `BlockWriter.finish` returned them.
    """

    def __init__(self, rows: np.ndarray, digests: bytes):
        self.rows, self.digests = rows, digests
        self.known = np.zeros(len(digests) // WIDTH, bool)

    def verify(self, starts: np.ndarray, ends: np.ndarray) -> None:
        """Verify the blocks that some ranges of bytes are in.

        Raises:
            ValueError: a block was changed.
        """
        if self.known.all():
            return
        ranges = zip((starts // BLOCK).tolist(), (-(-ends // BLOCK)).tolist(), strict=True)
        for block in sorted({block for first, end in ranges for block in range(first, end)}):
            if self.known[block]:
                continue
            if checksum(self.rows[block * BLOCK : (block + 1) * BLOCK].data) != self.digests[block * WIDTH : (block + 1) * WIDTH]:
                raise ValueError(f"the checksum of its block {block} differs")
            self.known[block] = True

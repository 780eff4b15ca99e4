"""Entropy coding: frequent values take fewer bits in the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from torch import nn

from kdkit import Context, Needs, Stage, Trait, param
from kdkit.models import Storage, select_layers


class Entropy(Stage):
    """Store weights so that frequent values take fewer bits; the model itself, and what it computes, stay as they are.

    Saves where values repeat: packed integers, shared values, zeros. `huffman` takes whole bits for each value (Huffman, 1952; used by Han et al.,
    "Deep Compression", 2016, arXiv:1510.00149); `ans` also fractions of a bit, and comes close to Shannon's bound (Duda, 2009, arXiv:0902.0271).
    `zlib` and `lzma` compress as for any file, for comparison. What is loaded is the same bit for bit. A later stage that changes weights ends it.
    """

    id: ClassVar = "encode.entropy"
    known_as: ClassVar[tuple[str, ...]] = ("Huffman coding", "ANS", "entropy coding")
    adds: ClassVar = frozenset({Trait.ENCODED})
    forbids: ClassVar = frozenset({Trait.ONNX})
    keeps_values: ClassVar = True
    may_change_nothing: ClassVar = True

    code: Literal["huffman", "ans", "zlib", "lzma"] = param("huffman", "how values are coded; ans needs the package constriction", search=("huffman", "ans"), main=True)
    layers: tuple[str, ...] = param(("*",), "layers to encode", names="layers")

    def required_inputs(self) -> Needs:
        return Needs(packages=("constriction",)) if self.code == "ans" else Needs()

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Patterns that select nothing."""
        select_layers(model, self.layers)
        return ()

    def storage(self) -> Storage:
        return Storage("entropy", layers=self.layers, options={"code": self.code})

"""Projections: map a student's feature to the shape of the teacher's, so that the two can be compared."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import Batch, KdError
from kdkit.tasks import at_least_float32
from kdkit_distill.precision import wide_pair

Sequence = Literal["text", "patches", "frames"]
"""What tokens are: words, patches of an image, or frames of audio. It decides how different numbers of tokens are matched."""

_CHOOSE = "choose layers that match: --layers student_layer=teacher_layer"


class Projection(nn.Module):
    """Maps a student's feature to the teacher's shape; trained with the student, but never saved with it.

    ==================  ====================================================================================================
    student, teacher    what is done
    ==================  ====================================================================================================
    map, map            1x1 convolution where channels differ; the larger map is average-pooled to the smaller one's size
    tokens, tokens      linear; other lengths: frames are average-pooled to the shorter, grids of patches as maps, text refused
    vector, vector      linear
    map, tokens         tokens become a map: those of a square, or of the map's own size; a class token in front is dropped
    ==================  ====================================================================================================

    A feature of the teacher's width is not mapped. Unlike RepDistiller's regressor, it has no batch norm: with it an item's
    loss would depend on its batch, and accumulated batches would give another training.

    Args:
        student, teacher: shapes, (batch, channels, height, width), (batch, tokens, hidden) or (batch, size).
        sequence: what tokens are.

    Raises:
        KdError: the features can't be compared; the message contains both shapes and what to choose.

    >>> project = Projection((8, 16, 12, 12), (8, 32, 6, 6))
    >>> [tuple(each.shape) for each in project(torch.zeros(8, 16, 12, 12), torch.zeros(8, 32, 6, 6))]
    [(8, 32, 6, 6), (8, 32, 6, 6)]
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], sequence: Sequence = "text"):
        super().__init__()
        self.sequence = sequence
        one, two = matched_shapes(student, teacher, sequence)
        width, wanted = width_of(one), width_of(two)
        self.map: nn.Module = nn.Identity()
        if width != wanted:
            self.map = nn.Conv2d(width, wanted, 1) if len(one) == 4 else nn.Linear(width, wanted)

    @classmethod
    def between(cls, student: Tensor, teacher: Tensor, sequence: Sequence = "text") -> Projection:
        """A projection for these two features, in the student's precision, at least float32."""
        return cls(tuple(student.shape), tuple(teacher.shape), sequence).to(student.device, at_least_float32(student).dtype)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both features, of one shape, at least float32.

        Args:
            student: of the shape it was made for; the numbers of items and tokens may differ.
            teacher: as `student`.
        """
        one, two = matched(at_least_float32(student), at_least_float32(teacher), self.sequence)
        if isinstance(self.map, nn.Conv2d | nn.Linear):
            one = self.map(one.to(self.map.weight.dtype))
        return wide_pair(one, two)


class Bridge(nn.Linear):
    """A linear layer that takes features of any precision, and computes in its own."""

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature.to(self.weight.dtype))


def bridge(student: Tensor, teacher: Tensor) -> nn.Module:
    """A linear map of tokens or vectors (..., width) from the student's width to the teacher's, without a bias; the identity if they are equal.

    It is in the student's precision, at least float32.

    >>> bridge(torch.zeros(2, 5, 8), torch.zeros(2, 5, 16)), bridge(torch.zeros(2, 8), torch.zeros(2, 8))
    (Bridge(in_features=8, out_features=16, bias=False), Identity())
    """
    widths = student.shape[-1], teacher.shape[-1]
    return nn.Identity() if widths[0] == widths[1] else Bridge(*widths, bias=False).to(student.device, at_least_float32(student).dtype)


def width_of(shape: tuple[int, ...]) -> int:
    """The width of a feature of this shape: the channels of a map, the size of a token or vector.

    >>> width_of((8, 16, 4, 4)), width_of((8, 5, 32))
    (16, 32)
    """
    return shape[1] if len(shape) == 4 else shape[-1]


def matched_shapes(student: tuple[int, ...], teacher: tuple[int, ...], sequence: Sequence = "text") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes that `matched` returns.

    >>> matched_shapes((8, 16, 4, 4), (8, 17, 32))
    ((8, 16, 4, 4), (8, 32, 4, 4))
    """
    one, two = matched(torch.empty(student, device="meta"), torch.empty(teacher, device="meta"), sequence)
    return tuple(one.shape), tuple(two.shape)


def matched(student: Tensor, teacher: Tensor, sequence: Sequence = "text") -> tuple[Tensor, Tensor]:
    """Both features with the same places; their widths may still differ.

    Args:
        student: (batch, channels, height, width), (batch, tokens, hidden) or (batch, size).
        teacher: as `student`.
        sequence: what tokens are.

    Raises:
        KdError: they can't be matched; the message contains both shapes and what to choose.
    """
    one, two = _flat(student, teacher), _flat(teacher, student)
    dimensions = one.dim(), two.dim()
    if dimensions == (2, 2):
        return one, two
    if dimensions == (3, 3):
        return _tokens(one, two, sequence)
    if dimensions in ((3, 4), (4, 3), (4, 4)):
        return _same_size(_as_map(one, two), _as_map(two, one))
    raise _unmatched(
        student, teacher, "a single vector for each item can't be compared with many places" if 2 in dimensions else "they are neither maps, tokens nor vectors"
    )


def sequence_of(example: Batch) -> Sequence:
    """What the tokens are in a model with such inputs.

    >>> [sequence_of(Batch((torch.zeros(shape),))) for shape in ((2, 3, 8, 8), (2, 16000))]
    ['patches', 'frames']
    """
    inputs = [item for item in (*example.args, *example.kwargs.values()) if isinstance(item, Tensor)]
    if not inputs or not inputs[0].is_floating_point():
        return "text"
    return "patches" if inputs[0].dim() == 4 else "frames"


def _flat(feature: Tensor, other: Tensor) -> Tensor:
    """A map of size 1x1 as a vector, if the other feature is a vector."""
    return feature.flatten(1) if feature.dim() == 4 and other.dim() == 2 and feature.shape[2:] == (1, 1) else feature


def _tokens(one: Tensor, two: Tensor, sequence: Sequence) -> tuple[Tensor, Tensor]:
    if one.shape[1] == two.shape[1]:
        return one, two
    if sequence == "patches":
        maps = _grid(one), _grid(two)
        if maps[0] is not None and maps[1] is not None:
            return _same_size(maps[0], maps[1])
    if sequence == "frames" and one.shape[2] != two.shape[2]:
        length = min(one.shape[1], two.shape[1])
        return _shortened(one, length), _shortened(two, length)
    if sequence == "frames":
        raise _unmatched(one, two, "are these (batch, frames, hidden) at two rates, or (batch, channels, frames) of two widths? The shapes don't show which")
    raise _unmatched(one, two, "the numbers of tokens differ, so tokens can't be paired")


def _shortened(tokens: Tensor, length: int) -> Tensor:
    return tokens if tokens.shape[1] == length else F.adaptive_avg_pool1d(tokens.transpose(1, 2), length).transpose(1, 2)


def _same_size(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps pooled to the smaller height and the smaller width."""
    size = min(one.shape[2], two.shape[2]), min(one.shape[3], two.shape[3])
    return _pooled(one, size), _pooled(two, size)


def _pooled(feature: Tensor, size: tuple[int, int]) -> Tensor:
    return feature if feature.shape[2:] == size else F.adaptive_avg_pool2d(feature, size)


def _as_map(feature: Tensor, other: Tensor) -> Tensor:
    """A feature as a map; tokens get the layout of the other map, or a square."""
    if feature.dim() == 4:
        return feature
    found = _grid(feature, (other.shape[2], other.shape[3]))
    if found is None:
        raise _unmatched(feature, other, f"{feature.shape[1]} tokens are neither {other.shape[2]}x{other.shape[3]} places nor a square, with or without a class token")
    return found


def _grid(tokens: Tensor, size: tuple[int, int] | None = None) -> Tensor | None:
    """Tokens (batch, tokens, hidden) as a map (batch, hidden, height, width), of `size` if that fits, else a square; None if neither fits."""
    count = tokens.shape[1]
    for height, width in ([size] if size else []) + [(side, side) for side in (math.isqrt(count), math.isqrt(count - 1))]:
        if height * width in (count, count - 1):
            places = tokens[:, count - height * width :]
            return places.transpose(1, 2).reshape(len(tokens), tokens.shape[2], height, width)
    return None


def _unmatched(student: Tensor, teacher: Tensor, why: str) -> KdError:
    return KdError(f"features of shapes {tuple(student.shape)} and {tuple(teacher.shape)} can't be matched: {why}", _CHOOSE)

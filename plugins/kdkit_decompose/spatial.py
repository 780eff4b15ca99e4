"""Spatial: a convolution as a column, k x 1, and a row, 1 x k."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from kdkit_decompose.forms import SPATIAL, Form
from kdkit_decompose.low_rank import LowRankStage


class Spatial(LowRankStage):
    """Replace convolutions k x k by a column, k x 1, and a row, 1 x k, with r channels between them.

    Jaderberg, Vedaldi, Zisserman, "Speeding up Convolutional Neural Networks with Low Rank Expansions", 2014 (arXiv:1405.3866). The weight
    (out · width, in · height) is approximated by its first r singular values: r·(in·height + out·width) parameters. The same as
    `decompose svd --form spatial` on convolutions only. Train afterwards: `distill soft` or `tune finetune`.

    Left alone, and named in the notes: kernels of one row or one column, and what `decompose svd` leaves alone too.
    """

    id: ClassVar = "decompose.spatial"
    known_as: ClassVar[tuple[str, ...]] = ("spatial SVD", "asymmetric convolutions")
    works_on: ClassVar = "convolutions of two dimensions"

    def kinds(self) -> tuple[type, ...]:
        return nn.Conv2d, nn.ConvTranspose2d

    def obstacle(self, layer: Any) -> str:
        return super().obstacle(layer) or ("" if SPATIAL.fits(layer) else "its kernel has one row or one column")

    def form_of(self, layer: Any) -> Form:
        return SPATIAL

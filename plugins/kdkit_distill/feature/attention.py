"""Attention transfer: the student looks where the teacher looks.

Zagoruyko and Komodakis, "Paying More Attention to Attention", 2017 (arXiv:1612.03928).

The paper writes the distance of two maps as ‖Q_s/‖Q_s‖ - Q_t/‖Q_t‖‖₂; the authors' code, and all that follow it, take the
mean of the squared differences, over places. The published weight of 1000 belongs to the code's form, which is the default: the
mean over places makes it as small as the map is large. The paper's form has values between 0 and 2 and wants a weight near 1.

Pitfalls: a map's strength is lost by the norm, so attention alone does not carry what the teacher says; it goes beside labels
or --also soft. Features need no projection: channels are summed away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.contract import param
from kdkit.errors import KdError
from kdkit.tasks.contract import wide
from kdkit.training import Term
from kdkit_distill.feature.stage import LayerStage, placed, term_name
from kdkit_distill.pooling import real_tokens
from kdkit_distill.projections import matched, sequence_of
from kdkit_distill.signals import Exchange

if TYPE_CHECKING:
    from kdkit.context import Context


def attention_map(feature: Tensor, real: Tensor | None = None) -> Tensor:
    """Where a feature is strong: its mean square over channels at each place, as a vector of length 1; (batch, places).

    Args:
        feature: (batch, channels, height, width) or (batch, tokens, hidden); computed in float32 at least.
        real: which tokens count, (batch, tokens) bool.

    >>> attention_map(torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]]))
    tensor([[1., 0.]])
    """
    energy = wide(feature).square().mean(-1) if feature.dim() == 3 else wide(feature).square().mean(1).flatten(1)
    if real is not None:
        energy = torch.where(real.to(energy.device), energy, 0.0)
    return F.normalize(energy, dim=1)


def attention_distance(student: Tensor, teacher: Tensor, form: str = "code", real: Tensor | None = None) -> Tensor:
    """How far apart two features' attention maps are, (batch,).

    Args:
        student: (batch, channels, height, width) or (batch, tokens, hidden).
        teacher: with as many places; channels may differ.
        form: "code", the mean of squared differences over places; "paper", their Euclidean norm.
        real: which tokens count, (batch, tokens) bool.

    >>> one, two = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    >>> attention_distance(one, two), attention_distance(one, two, "paper").square().round(decimals=5)
    (tensor([1.]), tensor([2.]))
    """
    apart = attention_map(student, real)
    apart = apart - attention_map(teacher, real).to(apart.dtype)
    if form == "paper":
        return torch.linalg.vector_norm(apart, dim=1)
    places = apart.shape[1] if real is None else real.sum(1).clamp_min(1).to(apart.device)
    return apart.square().sum(1) / places


def _even(feature: Tensor) -> bool:
    shares = attention_map(feature)
    return bool((shares.amax(1) - shares.amin(1) < 1e-3 * shares.amax(1)).all())


class Attention(LayerStage):
    """Match where layers are strong: their attention maps (AT).

    Loss per item: (1 - alpha) · label loss + alpha · weight · Σ over pairs of mean (Q_s/‖Q_s‖ - Q_t/‖Q_t‖)², Q = mean over channels of
    f². The larger map is pooled first. --form paper takes the norm of the difference instead, which wants a weight near 1.
    """

    id: ClassVar[str] = "distill.attention"

    weight: float = param(1000.0, "factor of the technique's terms", gt=0, search=(100, 10000))
    form: Literal["code", "paper"] = param("code", "the mean of squared differences, or as the paper writes it their norm (--weight near 1)")

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        for student, teacher in features:
            if min(student.dim(), teacher.dim()) < 3:
                raise KdError(
                    f"{self.title} compares places, and features of shapes {tuple(student.shape)} and {tuple(teacher.shape)} are not both maps or tokens",
                    "--layers student_layer=teacher_layer names others; for vectors: distill hints",
                )
            matched(student, teacher, sequence_of(context.example))
            if _even(teacher) and _even(student):
                raise KdError(
                    f"{self.title}: both features are as strong at every place, as what a layer norm gives, so their maps have nothing to tell",
                    "--layers names layers before a norm; for transformers: distill layers, distill minilm",
                )
        return nn.ModuleDict()

    def terms(self, seen: Exchange) -> Iterable[Term]:
        for pair, (student, teacher) in zip(seen.pairs, placed(seen), strict=True):
            real = real_tokens(seen.step.batch, student.shape[1]) if student.dim() == 3 else None
            yield Term(term_name("attention", pair, seen), attention_distance(student, teacher, self.form, real))

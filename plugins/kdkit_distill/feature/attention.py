"""Attention transfer: the student looks where the teacher looks.

Zagoruyko and Komodakis, "Paying More Attention to Attention", 2017 (arXiv:1612.03928).

The paper writes the distance of two maps as ‖Q_s/‖Q_s‖ - Q_t/‖Q_t‖‖₂; the authors' code, and all that follow it, use the
mean of the squared differences, over places. The published weight of 1000 belongs to the code's form, which is the default: the
mean over places makes the value small for large maps, so 1000 pulls 5 to 9 times as hard as the labels on a CIFAR ResNet, and
hundreds of times on other nets. By default the weight is chosen for a pull of 5.

Pitfalls: normalization removes a map's magnitude, so attention alone does not transfer the teacher's predictions; combine it with
labels or --also soft. Features need no projection: channels are summed away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import KdError, Term, param
from kdkit.tasks import at_least_float32
from kdkit_distill.feature.stage import LayerStage, placed, term_name
from kdkit_distill.layers.pooling import real_tokens
from kdkit_distill.layers.projections import matched, sequence_of
from kdkit_distill.signals import SignalPair
from kdkit_distill.weighting import Weight, weighted

if TYPE_CHECKING:
    from kdkit import Context


def attention_map(feature: Tensor, real: Tensor | None = None) -> Tensor:
    """The mean square of a feature over channels at each place, as a vector of length 1: (batch, places).

    Args:
        feature: (batch, channels, height, width) or (batch, tokens, hidden); computed in float32 at least.
        real: which tokens count, (batch, tokens) bool.

    >>> attention_map(torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]]))
    tensor([[1., 0.]])
    """
    energy = at_least_float32(feature).square().mean(-1) if feature.dim() == 3 else at_least_float32(feature).square().mean(1).flatten(1)
    if real is not None:
        energy = torch.where(real.to(energy.device), energy, 0.0)
    return F.normalize(energy, dim=1)


def attention_distance(student: Tensor, teacher: Tensor, form: str = "code", real: Tensor | None = None) -> Tensor:
    """The distance between the attention maps of two features, (batch,).

    Args:
        student: (batch, channels, height, width) or (batch, tokens, hidden).
        teacher: with the same number of places; channels may differ.
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
    """Match attention maps: where the features of layers have large values (AT).

    Loss per item: (1 - alpha) · label loss + alpha · weight · Σ over pairs of mean (Q_s/‖Q_s‖ - Q_t/‖Q_t‖)², Q = mean over channels of
    f². The larger map is pooled first. --form paper uses the norm of the difference instead.
    """

    id: ClassVar[str] = "distill.attention"
    known_as: ClassVar[tuple[str, ...]] = ("AT", "attention transfer")

    weight: Weight = weighted(1000.0, pull=5, search=(100, 10000))
    form: Literal["code", "paper"] = param("code", "code: the mean of squared differences; paper: their norm, for which --weight published is too large")

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        for student, teacher in features:
            if min(student.dim(), teacher.dim()) < 3:
                raise KdError(
                    f"{self.title} compares places, but features of shapes {tuple(student.shape)} and {tuple(teacher.shape)} are not both maps or tokens",
                    "choose other layers: --layers student_layer=teacher_layer; for vectors: distill hints",
                )
            matched(student, teacher, sequence_of(context.example))
            if _even(teacher) and _even(student):
                raise KdError(
                    f"{self.title}: both features have the same magnitude at every place, as after a layer norm, so their maps carry no information",
                    "choose layers before a norm with --layers; for transformers: distill layers, distill minilm",
                )
        return nn.ModuleDict()

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        for pair, (student, teacher) in zip(seen.pairs, placed(seen), strict=True):
            real = real_tokens(seen.step.batch, student.shape[1]) if student.dim() == 3 else None
            yield Term(term_name("attention", pair, seen), attention_distance(student, teacher, self.form, real))

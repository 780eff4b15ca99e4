"""MiniLM: the student matches the relations between tokens in the teacher's last block.

Wang, Wei, Dong, Bao, Yang, Zhou, "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020 (arXiv:2002.10957), version 1;
Wang, Bao, Huang, Dong, Wei, "MiniLMv2: Multi-Head Self-Attention Relation Distillation", Findings of ACL 2021
(arXiv:2012.15828), version 2.

    version 1: KL(softmax(A_t) ‖ softmax(A_s)) + KL(softmax(V_t V_tᵀ/√d) ‖ softmax(V_s V_sᵀ/√d)), a mean over heads and tokens
    version 2: the sum of KL(softmax(X_t X_tᵀ/√d) ‖ softmax(X_s X_sᵀ/√d)) over X = Q, K, V, their heads concatenated and
    split again into relation heads, so that student and teacher may differ in heads and width

Pitfalls: the teacher comes first in KL, the sum over a row is not its mean, and padding is excluded; some well-known
implementations differ in all three. For a deep teacher (24 blocks) a block before the last teaches better: --teacher-layer.
The head is not trained: the published recipe finetunes afterwards; add labels with --labels, or the prediction with --also
soft. Queries and keys are captured before rotary position embeddings are applied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import KdError, Term, param
from kdkit_distill.layers.pooling import token_mean
from kdkit_distill.precision import full_precision, wide_pair
from kdkit_distill.signals import Pair, SignalPair
from kdkit_distill.transformer.masks import check_tokens, compared_tokens, seen_pairs
from kdkit_distill.transformer.stack import Attention, parted
from kdkit_distill.transformer.stage import Aligned, TransformerStage

if TYPE_CHECKING:
    from kdkit import Context

MOST, NARROWEST = 48, 8
"""The largest default number of relation heads, 48 as for BERT-base in the paper, and their least width."""


def attention_distributions(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """KL(teacher's attention ‖ student's), averaged over heads and tokens.

    Args:
        student: scores before the softmax, (batch, heads, tokens, tokens); computed in float32 at least.
        teacher: the same shape.
        pairs: (batch, tokens, tokens) bool, which token may attend to which.

    Returns:
        (batch,), at least 0.

    >>> attention_distributions(torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool))
    tensor([0.])
    """
    predicted, expected = (_shares(each, pairs) for each in wide_pair(student, teacher))
    rows = (expected.exp() * (expected - predicted)).sum(-1).mean(1)
    return token_mean(rows, pairs.any(-1))


@full_precision
def self_relations(student: Tensor, teacher: Tensor, real: Tensor, heads: int) -> Tensor:
    """KL(teacher ‖ student) of the relations between tokens, softmax(X Xᵀ / √d).

    Args:
        student: queries, keys or values, (batch, tokens, width); computed in float32 at least.
        teacher: the same, of any width.
        real: (batch, tokens) bool, which tokens are not padding.
        heads: the number of relation heads; divides both widths.

    Returns:
        (batch,), at least 0.

    >>> self_relations(torch.ones(1, 3, 8), torch.zeros(1, 3, 4), torch.tensor([[True, True, False]]), 2)
    tensor([0.])
    """
    mine, theirs = (_products(parted(each, heads)) for each in wide_pair(student, teacher))
    return attention_distributions(mine, theirs, seen_pairs(real))


def relation_heads(*widths: int) -> int:
    """The largest number of heads that divides all widths, at most 48, each at least 8 wide if possible.

    >>> relation_heads(768, 384), relation_heads(32, 64), relation_heads(6, 6)
    (48, 4, 1)
    """
    shared, narrowest = math.gcd(*widths), min(widths)
    return max(heads for heads in range(1, max(1, min(MOST, narrowest // NARROWEST)) + 1) if shared % heads == 0)


def _products(rows: Tensor) -> Tensor:
    return rows @ rows.transpose(2, 3) / math.sqrt(rows.shape[-1])


def _shares(scores: Tensor, pairs: Tensor) -> Tensor:
    # the lowest number, not -inf: a row of padding attends to nothing, and must not give nan
    return torch.log_softmax(scores.masked_fill(~pairs[:, None], torch.finfo(scores.dtype).min), -1)


class MiniLM(TransformerStage):
    """Match how the last block's queries, keys and values relate tokens to one another (MiniLM).

    Loss: the sum of KL(softmax(X_t X_tᵀ/√d) ‖ softmax(X_s X_sᵀ/√d)) over queries, keys and values, split into
    relation heads, so that heads and widths may differ (MiniLM v2). --compare attention uses attention and the relation of values
    instead (version 1), and needs equal numbers of heads. There is no projection. The head learns nothing without --labels.
    """

    id: ClassVar[str] = "distill.minilm"
    known_as: ClassVar[tuple[str, ...]] = ("MiniLMv2",)

    labels: bool = param(False, "learn from labels too; the papers do not; --alpha has no effect without labels")
    compare: Literal["relations", "attention"] = param(
        "relations", "relations of queries, keys and values (version 2), or attention and the relation of values (version 1)", main=True
    )
    relation_heads: int | None = param(None, "number of relation heads, which must divide both widths; default: up to 48", ge=1, search=(1, 64))
    teacher_layer: int | None = param(None, "the teacher's block to learn from, counted from 0; default: the last", ge=0)

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        stacks = self.stacks(student, teacher)
        depth = len(stacks[1].blocks)
        if self.teacher_layer is not None and self.teacher_layer >= depth:
            raise KdError(f"{self.title}: --teacher-layer {self.teacher_layer}, but the teacher has {depth} blocks", f"they are numbered from 0 to {depth - 1}")
        mine, theirs = stacks[0].blocks[-1].attention, stacks[1].blocks[-1 if self.teacher_layer is None else self.teacher_layer].attention
        self._check_heads(mine, theirs)
        return (Aligned(mine.query, theirs.query, "attention", mine, theirs), Pair(mine.key, theirs.key), Pair(mine.value, theirs.value))

    def _check_heads(self, student: Attention, teacher: Attention) -> None:
        if self.compare == "attention" and (student.biased or teacher.biased):
            raise KdError(
                f"{self.title}: a model adds a position bias to its attention scores, which can't be captured", "use --compare relations, which needs no scores"
            )
        if self.compare == "attention" and student.heads != teacher.heads:
            raise KdError(
                f"{self.title} --compare attention needs equal numbers of heads: the student has {student.heads} heads, the teacher {teacher.heads}",
                "use --compare relations, which splits them again",
            )
        widths = _widths(student) + _widths(teacher)
        if self.compare == "relations" and self.relation_heads and any(width % self.relation_heads for width in widths):
            raise KdError(
                f"{self.title}: --relation-heads {self.relation_heads} does not divide the widths {', '.join(map(str, sorted(set(widths))))}",
                f"--relation-heads {relation_heads(*widths)} does",
            )

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        student, teacher = features[0]
        check_tokens(student.flatten(2), teacher.flatten(2), self.title)
        return nn.ModuleDict()

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        pair = seen.pairs[0]
        assert isinstance(pair, Aligned)
        assert pair.mine is not None
        assert pair.theirs is not None
        batch, features = seen.step.batch, (seen.student.features, seen.teacher.features)
        real = compared_tokens(batch, features[0][pair.student])
        if self.compare == "attention":
            scores = pair.mine.scores(features[0], batch), pair.theirs.scores(features[1], batch)
            yield Term("attention-relation", attention_distributions(*scores, seen_pairs(real, pair.mine.causal or pair.theirs.causal)))
            values = _repeated(pair.mine, features[0]), _repeated(pair.theirs, features[1])
            yield Term("value-relation", self_relations(*values, real, pair.mine.heads))
            return
        heads = self.relation_heads or relation_heads(*_widths(pair.mine), *_widths(pair.theirs))
        for name, rows in (("query", Attention.queries), ("key", Attention.keys), ("value", Attention.values)):
            yield Term(f"{name}-relation", self_relations(rows(pair.mine, features[0]), rows(pair.theirs, features[1]), real, heads))


def _widths(attention: Attention) -> tuple[int, int]:
    return attention.heads * attention.size, attention.groups * attention.size


def _repeated(attention: Attention, features: Mapping[str, Tensor]) -> Tensor:
    """The values for each query head; heads that share a value head get the same values."""
    return attention.values(features).unflatten(-1, (attention.groups, -1)).repeat_interleave(attention.heads // attention.groups, 2).flatten(2)

"""Layers: the student matches the teacher's embeddings, hidden states, attention scores and prediction (TinyBERT).

Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of
EMNLP 2020 (arXiv:1909.10351).

    L = MSE(E_s W_e, E_t) + Σ_m [ MSE(H_s^m W_h, H_t^g(m)) + 1/heads · Σ MSE(A_s^m, A_t^g(m)) ] + T² KL(teacher ‖ student)
    A = Q Kᵀ / √size, before the softmax; g(m) = m · teacher's blocks / student's blocks

W_e and W_h are trained with the student where widths differ, but not saved. The last term is the published soft cross entropy
minus the teacher's entropy, with T², which the published code lacks; for models without classes it is the MSE of their
vectors or numbers, and vectors of different widths are not compared.

Pitfalls: transformers returns attention after the softmax, and none under sdpa, so the scores are computed from the outputs of
the layers for queries and keys. Means are over the tokens of an item, or pairs of them, that are not padding; the published
code counts padding as zeros. If head counts differ, the means over heads are compared, a far weaker term. The paper learns the
layers first and then the prediction: --intermediate-share 0.7; and it learns without labels, as this does by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from kdkit import KdError, Task, Term, param
from kdkit.tasks import Classification
from kdkit_distill.feature.hints import hint_distance
from kdkit_distill.layers.heads import same_classes
from kdkit_distill.layers.pooling import token_mean
from kdkit_distill.layers.projections import bridge
from kdkit_distill.precision import wide_pair
from kdkit_distill.response.divergences import soft_labels, squared
from kdkit_distill.response.stage import Tempered
from kdkit_distill.signals import Pair, Signal, SignalPair
from kdkit_distill.transformer.masks import check_tokens, compared_tokens, seen_pairs
from kdkit_distill.transformer.stack import Attention, Block, Stack
from kdkit_distill.transformer.stage import Aligned, TransformerStage

if TYPE_CHECKING:
    from kdkit import Context


def hidden_states(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """The mean squared difference of the hidden states of an item's tokens.

    Args:
        student: (batch, tokens, hidden); computed in float32 at least.
        teacher: the same shape.
        real: (batch, tokens) bool, which tokens are not padding.

    Returns:
        (batch,).

    >>> import torch
    >>> hidden_states(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([[True, False]]))
    tensor([1.])
    """
    return token_mean(hint_distance(student, teacher), real)


def attention_scores(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The mean squared difference of attention scores before the softmax, over heads and pairs of tokens.

    Args:
        student: (batch, heads, tokens, tokens); computed in float32 at least.
        teacher: the same; if the number of heads differs, the means over heads are compared.
        pairs: (batch, tokens, tokens) bool, which token may see which.

    Returns:
        (batch,).

    >>> import torch
    >>> attention_scores(torch.ones(1, 4, 2, 2), torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    tensor([1.])
    """
    student, teacher = wide_pair(student, teacher)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    return token_mean((student - teacher).square().mean(1).flatten(1), pairs.flatten(1))


def prediction(student: Tensor, teacher: Tensor, task: Task, temperature: float = 1.0) -> Tensor | None:
    """The distance between the predictions: T² · KL for classes, otherwise the mean squared difference.

    Args:
        student: the task's prediction, (batch, classes), (batch, tokens, classes), or (batch, values).
        teacher: the same; if one head has a padded vocabulary, the padding is cut off.

    Returns:
        (batch,) or (batch, tokens); None for vectors of different widths, which can't be compared.

    Raises:
        KdError: the classes are not the same.

    >>> import torch
    >>> from kdkit.tasks import Embedding
    >>> prediction(torch.ones(2, 3), torch.zeros(2, 3), Embedding())
    tensor([1., 1.])
    """
    classes = (student.shape[-1], teacher.shape[-1])
    if not isinstance(task, Classification):
        return None if classes[0] != classes[1] else squared(student, teacher)
    predicted, expected = same_classes(Signal(student), Signal(teacher), task, "or leave the prediction out: --prediction-weight 0")
    return soft_labels(predicted.logits, expected.logits, temperature)


def uniform_map(student: int, teacher: int) -> list[tuple[int, int]]:
    """Which block learns from which, counted from 0: the last from the last, the others evenly.

    >>> uniform_map(2, 6), uniform_map(4, 6)
    ([(0, 2), (1, 5)], [(0, 0), (1, 2), (2, 3), (3, 5)])
    """
    return [(block, max(0, (block + 1) * teacher // student - 1)) for block in range(student)]


class Layers(Tempered, TransformerStage):
    """Match a transformer's embeddings, hidden states, attention scores and prediction (TinyBERT).

    Loss: MSE of embeddings + sum over blocks of MSE of hidden states and of attention scores before the softmax + T² · KL of the
    predictions. Linear maps bridge different widths; blocks are paired evenly, or by --map 0=2 1=5. Labels are not used
    without --labels. --intermediate-share 0.7 learns the layers first and then only the prediction, as in the paper.
    """

    id: ClassVar[str] = "distill.layers"
    known_as: ClassVar[tuple[str, ...]] = ("TinyBERT",)

    labels: bool = param(False, "learn from labels too; the paper does not; --alpha has no effect without labels")
    map: tuple[str, ...] = param((), "pairs student_block=teacher_block, counted from 0; default: evenly spread")
    temperature: float = param(1.0, "softens both predictions", gt=0, search=(1, 8), main=True)
    intermediate_share: float | None = param(None, "share of the training for the layers only, the rest for the prediction only; default: both at once", ge=0, le=1)
    embedding_weight: float = param(1.0, "factor of the embeddings", ge=0, advanced=True)
    hidden_weight: float = param(1.0, "factor of the hidden states", ge=0, advanced=True)
    attention_weight: float = param(1.0, "factor of the attention scores", ge=0, advanced=True)
    prediction_weight: float = param(1.0, "factor of the prediction", ge=0, advanced=True)

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        mine, theirs = self.stacks(student, teacher)
        blocks = self._mapped(mine, theirs)
        attentions = [(one.attention, two.attention) for one, two in blocks] if self.attention_weight else []
        for one, two in attentions:
            if one.biased or two.biased:
                raise KdError(
                    f"{self.title}: a model adds a position bias to its attention scores, which can't be captured", "leave the scores out: --attention-weight 0"
                )
        if any(one.heads != two.heads for one, two in attentions):
            context.note(f"{self.title}: the student has {attentions[0][0].heads} heads, the teacher {attentions[0][1].heads}, so the means over heads are compared")
        found: list[Pair] = [Aligned(mine.embeddings, theirs.embeddings, "embeddings")]
        found += [Aligned(one.name, two.name, "hidden") for one, two in blocks]
        for one, two in attentions:
            found += [Aligned(one.query, two.query, "scores", one, two), Pair(one.key, two.key)]
        return tuple(found)

    def _mapped(self, student: Stack, teacher: Stack) -> list[tuple[Block, Block]]:
        sizes = (len(student.blocks), len(teacher.blocks))
        numbers = [_numbers(pair, sizes, self.title) for pair in self.map] if self.map else uniform_map(*sizes)
        return [(student.blocks[one], teacher.blocks[two]) for one, two in numbers]

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        found = nn.ModuleDict()
        for name, (student, teacher) in zip(("embeddings", "hidden"), features, strict=False):
            check_tokens(student, teacher, self.title)
            found[name] = bridge(student, teacher)
        return found

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        for name, factor in (("embeddings", self.embedding_weight), ("hidden", self.hidden_weight), ("scores", self.attention_weight)):
            values = [self._compared(pair, seen) for pair in seen.pairs if isinstance(pair, Aligned) and pair.role == name]
            if factor and values:
                yield Term(name, sum(values[1:], values[0]), self._phased(factor, early=True))
        temperature = self.temperature_at(seen.step.progress)
        answers = prediction(seen.student.logits, seen.teacher.dense, seen.step.task, temperature) if self.prediction_weight else None
        if answers is not None:
            yield Term("prediction", answers, self._phased(self.prediction_weight, early=False))

    def _compared(self, pair: Aligned, seen: SignalPair) -> Tensor:
        student, teacher = seen.student.features, seen.teacher.features
        batch = seen.step.batch
        real = compared_tokens(batch, student[pair.student])
        if isinstance(pair.mine, Attention) and isinstance(pair.theirs, Attention):
            return attention_scores(pair.mine.scores(student, batch), pair.theirs.scores(teacher, batch), seen_pairs(real, pair.mine.causal or pair.theirs.causal))
        mine = student[pair.student]
        return hidden_states(seen.modules[pair.role](mine), teacher[pair.teacher], real)

    def _phased(self, factor: float, early: bool) -> float | Callable[[float], float]:
        """The weight of a term that counts in the first phase, or in the second."""
        share = self.intermediate_share
        if share is None:
            return factor
        return lambda progress: factor if (progress < share or share == 1) == early else 0.0


def _numbers(pair: str, sizes: tuple[int, int], title: str) -> tuple[int, int]:
    one, _, two = pair.partition("=")
    if not (one.isdigit() and two.isdigit() and int(one) < sizes[0] and int(two) < sizes[1]):
        raise KdError(
            f"{title}: --map {pair} names no pair of blocks", f"write student_block=teacher_block, numbers from 0 to {sizes[0] - 1} and from 0 to {sizes[1] - 1}"
        )
    return int(one), int(two)

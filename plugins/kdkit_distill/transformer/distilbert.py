"""DistilBERT: soft labels, the labels, and the direction of the last hidden states.

Sanh, Debut, Chaumond, Wolf, "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019
(arXiv:1910.01108).

    L = [ 5 · T² KL(p_t ‖ p_s) + 2 · label loss (masked tokens) + 1 · (1 - cos(h_s, h_t)) ] / 8, T = 2

The published run's weights, divided by their sum: alpha = 6/8 is the teacher's share, 5/6 and 1/6 of it are those of soft
labels and cosine. KL and cosine count every token that is not padding; --tokens labels counts KL only on tokens with a label,
such as the masked tokens.

Pitfalls: means are over counted tokens of the whole step, not over classes or padding. The paper's student starts with every
other block of the teacher; otherwise it learns far more slowly: --student layers=0,2,4,6,8,10. If widths differ, a linear map
of the student's states is trained with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn

from kdkit import Batch, Task, Term, param
from kdkit.tasks import TokenClassification
from kdkit_distill.layers.matching import parsed
from kdkit_distill.layers.pooling import real_tokens
from kdkit_distill.layers.projections import bridge
from kdkit_distill.response.divergences import cosine_distance, soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.signals import Pair, SignalPair
from kdkit_distill.transformer.masks import check_tokens, compared_tokens
from kdkit_distill.transformer.stage import TransformerStage

if TYPE_CHECKING:
    from kdkit import Context


class DistilBert(ResponseStage, TransformerStage):
    """Match the softened predictions and the direction of the last hidden states, with the labels (DistilBERT).

    Loss: (5 · T² KL + 2 · label loss + 1 - cosine) / 8 with the default alpha. For masked and causal language
    models, classifiers of items and of tokens. Start with a student made of the teacher's blocks: --student layers=0,2,4.
    """

    id: ClassVar[str] = "distill.distilbert"

    alpha: float = param(0.75, "share of the teacher in the loss; the rest is the labels'", ge=0, le=1, search=(0.5, 1.0))
    temperature: float = param(2.0, "softens both distributions; 1: no softening", gt=0, search=(1, 8), main=True)
    soft_weight: float = param(5.0, "weight of the soft labels, relative to --cosine-weight", ge=0)
    cosine_weight: float = param(1.0, "weight of the cosine of hidden states, relative to --soft-weight", gt=0)
    tokens: Literal["attention", "labels"] = param("attention", "where soft labels count: on all tokens except padding, or only on those with a label", advanced=True)
    layers: tuple[str, ...] = param((), "the pair student_layer=teacher_layer of hidden states; default: the last ones", advanced=True)

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        if self.layers:
            return parsed(self.layers)
        mine, theirs = self.stacks(student, teacher)
        return (Pair(mine.final, theirs.final),)

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        found = nn.ModuleDict()
        for number, (student, teacher) in enumerate(features):
            check_tokens(student, teacher, self.title)
            found[str(number)] = bridge(student, teacher)
        return found

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        whole = self.soft_weight + self.cosine_weight
        real = real_tokens(seen.step.batch)
        if self.soft_weight:
            values = soft_labels(seen.student.logits, seen.teacher.logits, self.temperature_at(seen.step.progress))
            everywhere = self.tokens == "attention" and values.dim() == 2 and real is not None
            yield Term("soft", values, self.soft_weight / whole, mask=real if everywhere else None)
        for key, student, teacher in seen.features():
            compared_tokens(seen.step.batch, student)
            values = cosine_distance(seen.modules[key](student), teacher)
            yield Term("cosine", values.mean(1) if real is None else values, self.cosine_weight / whole, mask=real)

    def counts(self, batch: Batch, task: Task) -> Mapping[str, int]:
        real = real_tokens(batch)
        if real is None:
            return {}
        held = int(real.sum())
        return {"cosine": held, "soft": held} if self.tokens == "attention" and isinstance(task, TokenClassification) else {"cosine": held}

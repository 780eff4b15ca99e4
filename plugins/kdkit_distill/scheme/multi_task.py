"""Several tasks at once: each head of a student learns from its own teacher.

Liu, He, Chen, Gao, "Improving Multi-Task Deep Neural Networks via Knowledge Distillation for Natural Language Understanding",
2019 (arXiv:1904.09482). The heads share the layers below them, so a task with few items benefits from the others.

Pitfalls: if one head improves at the cost of another, balance them with --weights. Each teacher runs on every item, also on
those of other tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from kdkit import Batch, KdError, Term, did_you_mean, param
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.stage import SeveralTeachers, refuse
from kdkit_distill.signals import Signal, SignalPair
from kdkit_distill.teachers.sources import MultiSource, Source

if TYPE_CHECKING:
    from kdkit import Context


def head_of(output: Any, head: str) -> Tensor:
    """One head of a model's output: by name in a mapping or an output object, by number in a tuple or list.

    Raises:
        KdError: it has no such head.

    >>> import torch
    >>> head_of({"colour": torch.zeros(2, 3)}, "colour").shape, head_of((torch.zeros(2, 3), torch.zeros(2, 5)), "1").shape
    (torch.Size([2, 3]), torch.Size([2, 5]))
    """
    named = _heads(output)
    found = named.get(head)
    if not isinstance(found, Tensor):
        texts = f"its heads: {', '.join(named) or 'none, only one output'}"
        raise KdError(f"the student has no head {head!r}", did_you_mean(head, named), texts, "its forward returns a dict or tuple of heads; --heads names them")
    return found


def _heads(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if isinstance(output, list | tuple):
        return {str(index): value for index, value in enumerate(output)} | (output._asdict() if hasattr(output, "_asdict") else {})
    return {} if isinstance(output, Tensor) else {name: value for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)}


class Heads(MultiSource):
    """Each teacher's logits, stored among the features under the name of its head."""

    def __init__(self, names: Sequence[str], heads: Sequence[str], context: Context):
        super().__init__(names, context)
        self.heads = tuple(heads)

    def settings(self) -> str:
        return str(self.heads)

    def joined(self, signals: Sequence[Signal], batch: Batch) -> Signal:
        return Signal(signals[0].logits, dict(zip(self.heads, (signal.dense for signal in signals), strict=True)))


class MultiTask(SeveralTeachers):
    """Train each head of a student with its own teacher.

    Loss per item: Σ_k w_k · T² · KL(softmax(z_k / T) ‖ softmax(student's head k / T)). The student returns a dict or a tuple
    of heads. With --labels, the task's own loss is added, on the head that the task reads.
    """

    id: ClassVar[str] = "distill.multi-task"
    known_as: ClassVar[tuple[str, ...]] = ("MT-DNN",)
    compares_logits: ClassVar[bool] = False

    heads: tuple[str, ...] = param((), "the student's head for each teacher: keys of the returned dict, or numbers of the tuple; default: 0 1 ...")
    weights: tuple[float, ...] = param((), "of the heads, in their order; default: all 1")
    labels: bool = param(False, "learn from labels too, with the task's own loss")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.heads and len(set(self.heads)) != len(self.teachers):
            yield f"--heads needs a different head for each teacher: {len(self.teachers)} teachers"
        yield from self.weight_conflicts(self.weights)

    @property
    def named_heads(self) -> tuple[str, ...]:
        """The heads, in the order of the teachers."""
        return self.heads or tuple(map(str, range(len(self.teachers))))

    def source(self, context: Context) -> Source:
        refuse(self)
        return Heads(self.teachers, self.named_heads, context)

    def incompatible_signals(self, student: Signal, teacher: Signal) -> str:
        for name, head in zip(self.teachers, self.named_heads, strict=True):
            predicted, expected = head_of(student.output, head), teacher.features[head]
            # a single logit means two classes
            known = 2 if predicted.ndim == 1 or predicted.shape[-1] == 1 else predicted.shape[-1]
            if known != expected.shape[-1]:
                return f"head {head!r} of the student has {known} classes, its teacher {name} {expected.shape[-1]}; both need the same classes"
        return ""

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        temperature = self.temperature_at(seen.step.progress)
        for head, weight in zip(self.named_heads, self.weights or [1.0] * len(self.teachers), strict=True):
            predicted = seen.step.task.prediction(head_of(seen.student.output, head), seen.step.batch)
            yield Term(f"head {head}", soft_labels(predicted, seen.teacher.features[head], temperature), weight)

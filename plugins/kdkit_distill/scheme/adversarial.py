"""Adversarial distillation: the student learns the teacher's answers where an attacker has moved the inputs.

Goldblum, Fowl, Feizi, Goldstein, "Adversarially Robust Distillation", 2020 (arXiv:1905.09747): ARD.
Zi, Zhao, Ma, Jiang, "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better", 2021
(arXiv:2108.07969): RSLAD. The attack is PGD.

Pitfalls:

- The teacher must itself be robust: a student inherits robustness, it does not invent it.
- Epsilon is a distance in pixels. Where the data is normalised already, --mean and --std say how, and pixels are meant again;
  inputs outside --low and --high are refused, since an attack clamped to the wrong range is none.
- The student attacks itself in eval mode and without gradients of its weights, so its batch norm never sees a half-made attack;
  the finished one goes through it in train mode, as in both papers. The teacher sees the clean inputs only.
- A step costs --attack-steps forward and backward passes more.
- RSLAD's paper writes KL(S(x'), T(x)); its code, and this, compute KL(T(x) ‖ S(x')), inside the attack as well. Its attack begins
  at a random point very near x, ours anywhere within epsilon.
- Accuracy under PGD is an upper bound: stronger attacks (AutoAttack) find more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from kdkit.contract import Needs, param
from kdkit.counting import device_of
from kdkit.data import Batch, Data
from kdkit.models import frozen
from kdkit.tasks import Classification, Task
from kdkit.tasks.classes import cross_entropy
from kdkit.training import Step, Term, TrainPart
from kdkit_distill.lesson import Lesson
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import Tempered
from kdkit_distill.schedules import between
from kdkit_distill.scheme.attack import EVALUATION_STEPS, Threat, label_losses, moved_part, pgd, robust_accuracy, with_inputs
from kdkit_distill.signals import Exchange

if TYPE_CHECKING:
    from kdkit.context import Context

MOVED, CLEAN = 5 / 6, 1 / 6
"""The shares of the attacked and of the clean inputs in RSLAD."""


def robust_soft_labels(moved: Tensor, clean: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """RSLAD: 5/6 · T² KL(teacher ‖ student on moved inputs) + 1/6 · T² KL(teacher ‖ student on clean inputs).

    The mean over a batch is batchmean; the authors' code takes the mean over classes too, and is smaller by their number.

    Args:
        moved, clean: the student's logits, (..., classes).
        teacher: logits for the clean inputs, of the same shape.
        temperature: T; 1 in the paper.

    Returns:
        (...), at least float32.

    >>> import torch
    >>> robust_soft_labels(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    tensor([0., 0.])
    """
    return MOVED * soft_labels(moved, teacher, temperature) + CLEAN * soft_labels(clean, teacher, temperature)


class Adversarial(Tempered):
    """Learn the teacher's answers on inputs that an attacker has moved (ARD, RSLAD).

    x' is x moved by PGD against the student, at most --epsilon a pixel.
    ard: alpha · T² KL(T(x) ‖ S(x')) + (1 - alpha) · label loss on x; x' raises the student's label loss; T = 30.
    rslad: alpha · [5/6 KL(T(x) ‖ S(x')) + 1/6 KL(T(x) ‖ S(x))] + (1 - alpha) · label loss on x; x' raises KL(T(x) ‖ S(x')).

    The teacher must be robust itself. Accuracy under PGD-20 on the evaluation data is told before and after.
    """

    id: ClassVar[str] = "distill.adversarial"
    tried_as: ClassVar[str] = "--low -5 --high 5"
    compares_logits: ClassVar[bool] = True

    objective: Literal["ard", "rslad"] = param("rslad", "whose loss and attack: ard attacks the labels, rslad the teacher's soft answers")
    alpha: float = param(1.0, "share of the teacher in the loss; the rest is the labels', on clean inputs", gt=0, le=1, search=(0.5, 1.0))
    temperature: float | None = param(None, "softens both distributions; 30 for ard and 1 for rslad when not said", gt=0)  # type: ignore[assignment]
    epsilon: float = param(8 / 255, "the furthest a pixel is moved, in units of the inputs before normalisation", gt=0)
    attack_step: float = param(2 / 255, "how far one step of the attack moves a pixel", gt=0)
    attack_steps: int = param(10, "steps of the attack; each costs a forward and a backward pass", ge=1)
    random_start: bool = param(True, "begin the attack anywhere within epsilon; --no-random-start at the input")
    low: float = param(0.0, "least value of a pixel", unit="that of a pixel")
    high: float = param(1.0, "greatest value of a pixel", unit="that of a pixel")
    mean: tuple[float, ...] = param((), "of the normalisation that the data went through, one a channel or one for all")
    std: tuple[float, ...] = param((), "of that normalisation")
    measure: int = param(512, "items of the evaluation data on which accuracy under attack is told before and after; 0 for none", ge=0, advanced=True)

    @property
    def threat(self) -> Threat:
        """What the attacker may do."""
        return Threat(self.epsilon, self.attack_step, self.low, self.high, self.mean, self.std)

    def temperature_at(self, progress: float) -> float:
        """The temperature at `progress` of the training; it begins with the paper's own where none is said."""
        start = self.temperature or (30.0 if self.objective == "ard" else 1.0)
        return between(self.temperature_schedule, start, self.temperature_end, progress)

    def needed(self) -> Needs:
        return super().needed() | Needs(labels=self.objective == "ard" and self.labels)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.low >= self.high:
            yield f"--low {self.low:g} is not below --high {self.high:g}"
        if any(value <= 0 for value in self.std):
            yield "--std must be above 0"

    def unsuited(self, task: Task) -> str:
        return "" if isinstance(task, Classification) else "it attacks and compares classes, and works for classification"

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return Attacked(self, context)

    def attack(self, model: nn.Module, teacher: Tensor, step: Step) -> Tensor:
        """The batch's inputs, moved against `model`; its modes and flags are put back, and no gradient stays on its weights.

        Args:
            teacher: logits for the clean inputs.
        """

        def loss(inputs: Tensor) -> Tensor:
            output = with_inputs(step.batch, inputs).call(model)
            if self.objective == "ard" and self.labels:
                return label_losses(step.task, output, step.batch)
            said = step.task.prediction(output, step.batch)
            if self.objective == "ard":
                return cross_entropy(said, teacher.argmax(-1)).flatten(1).sum(1) if said.ndim > 2 else cross_entropy(said, teacher.argmax(-1))
            return soft_labels(said, teacher, self.temperature_at(step.progress))

        with frozen(model):
            return pgd(loss, moved_part(step.batch), self.threat, self.attack_steps, self.random_start)

    def terms(self, seen: Exchange) -> Iterable[Term]:
        step = seen.step
        moved = with_inputs(step.batch, self.attack(step.model, seen.teacher.dense, step))
        said = step.task.prediction(moved.call(step.model), moved)
        temperature = self.temperature_at(step.progress)
        if self.objective == "ard":
            yield Term("ard", soft_labels(said, seen.teacher.dense, temperature))
        else:
            yield Term("rslad", robust_soft_labels(said, seen.student.logits, seen.teacher.dense, temperature))


class Attacked(Lesson):
    """A lesson whose inputs are attacked; robust accuracy is told before and after."""

    stage: Adversarial

    def open(self, model: nn.Module) -> None:
        self.stage.threat.check(moved_part(self.context.data(self.stage.data).example()))
        super().open(model)
        self.before = self.measured(model)
        self.stepped = False

    def after_step(self, step: Step) -> None:
        super().after_step(step)
        self.stepped = True

    def measured(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on the evaluation data, clean and attacked; empty where there is none with labels."""
        data = self.context.objects.get("eval")
        if not self.stage.measure or data is None or not data.labelled:
            return {}
        device = device_of(model)

        def call(batch: Batch) -> Any:
            self.context.check_cancelled()
            return batch.call(model)

        here = Data(lambda: (batch.to(device) for batch in data.batches()), data.why)
        with frozen(model):
            return robust_accuracy(call, here, self.stage.threat, items=self.stage.measure, task=self.context.task, seed=self.context.seed)

    def close(self, model: nn.Module) -> None:
        super().close(model)
        if getattr(self, "stepped", False) and self.before and not self.context.cancelled.is_set():
            after = self.measured(model)
            told = ", ".join(f"{name} {self.before[name]:.3f} -> {after[name]:.3f}" for name in after)
            self.context.note(f"accuracy on eval: {told} (PGD-{EVALUATION_STEPS}, epsilon {self.stage.epsilon:.3g})")

"""Adversarial distillation: the student learns the teacher's predictions on inputs that an attacker has changed.

Goldblum, Fowl, Feizi, Goldstein, "Adversarially Robust Distillation", 2020 (arXiv:1905.09747): ARD.
Zi, Zhao, Ma, Jiang, "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better", 2021
(arXiv:2108.07969): RSLAD. The attack is PGD.

Pitfalls:

- The teacher must itself be robust: the student can only learn robustness from it.
- Epsilon is a distance in pixel values. For normalised data, pass --mean and --std, so that epsilon is still in pixel values;
  inputs outside --low and --high are refused, since an attack clamped to the wrong range has no effect.
- The student attacks itself in eval mode and without gradients of its weights, so its batch norm never sees an unfinished
  attack; the finished one goes through it in train mode, as in both papers. The teacher sees the clean inputs only.
- A step costs --attack-steps more forward and backward passes.
- RSLAD's paper writes KL(S(x'), T(x)); its code, and this, compute KL(T(x) ‖ S(x')), also inside the attack. Its attack starts
  at a random point very near x, ours anywhere within epsilon.
- Accuracy under PGD is an upper bound: stronger attacks (AutoAttack) find more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from kdkit import Batch, Data, Needs, Step, Task, Term, TrainPart, param
from kdkit.models import device_of, frozen
from kdkit.tasks import Classification, cross_entropy
from kdkit_distill.distill_part import DistillPart
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import Tempered
from kdkit_distill.schedules import between
from kdkit_distill.scheme.attack import EVALUATION_STEPS, Threat, label_losses, moved_part, pgd, robust_accuracy, with_inputs
from kdkit_distill.signals import SignalPair

if TYPE_CHECKING:
    from kdkit import Context

MOVED, CLEAN = 5 / 6, 1 / 6
"""The weights of the attacked and of the clean inputs in RSLAD."""


def robust_soft_labels(moved: Tensor, clean: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """RSLAD: 5/6 · T² KL(teacher ‖ student on moved inputs) + 1/6 · T² KL(teacher ‖ student on clean inputs).

    The mean over a batch is batchmean; the authors' code also averages over classes, so its value is smaller by their number.

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
    """Learn the teacher's predictions on inputs that an attacker has changed (ARD, RSLAD).

    x' is x changed by PGD against the student, by at most --epsilon for each pixel.
    ard: alpha · T² KL(T(x) ‖ S(x')) + (1 - alpha) · label loss on x; x' raises the student's label loss; T = 30.
    rslad: alpha · [5/6 KL(T(x) ‖ S(x')) + 1/6 KL(T(x) ‖ S(x))] + (1 - alpha) · label loss on x; x' raises KL(T(x) ‖ S(x')).

    The teacher must be robust itself. Accuracy under PGD-20 on the evaluation data is reported before and after.
    """

    id: ClassVar[str] = "distill.adversarial"
    known_as: ClassVar[tuple[str, ...]] = ("ARD", "RSLAD")
    tried_as: ClassVar[str] = "--low -5 --high 5"
    compares_logits: ClassVar[bool] = True

    objective: Literal["ard", "rslad"] = param("rslad", "loss and attack: ard attacks the labels, rslad the teacher's soft predictions", main=True)
    alpha: float = param(1.0, "share of the teacher in the loss; the rest is the labels', on clean inputs", gt=0, le=1, search=(0.5, 1.0))
    temperature: float | None = param(None, "softens both distributions; default: 30 for ard, 1 for rslad", gt=0)  # type: ignore[assignment]
    epsilon: float = param(8 / 255, "the largest change of a pixel, in units of the inputs before normalisation", gt=0)
    attack_step: float = param(2 / 255, "change of a pixel in one step of the attack", gt=0)
    attack_steps: int = param(10, "steps of the attack; each costs a forward and a backward pass", ge=1)
    random_start: bool = param(True, "start the attack anywhere within epsilon; --no-random-start starts it at the input")
    low: float = param(0.0, "least value of a pixel", unit="that of a pixel")
    high: float = param(1.0, "greatest value of a pixel", unit="that of a pixel")
    mean: tuple[float, ...] = param((), "mean of the data's normalisation, one for each channel or one for all")
    std: tuple[float, ...] = param((), "standard deviation of the data's normalisation, as --mean")
    measure: int = param(512, "items of the evaluation data to measure accuracy under attack on, before and after; 0 for none", ge=0, advanced=True)

    @property
    def threat(self) -> Threat:
        """The limits of the attacker."""
        return Threat(self.epsilon, self.attack_step, self.low, self.high, self.mean, self.std)

    def temperature_at(self, progress: float) -> float:
        """The temperature at `progress` of the training; default at the start: the paper's."""
        start = self.temperature or (30.0 if self.objective == "ard" else 1.0)
        return between(self.temperature_schedule, start, self.temperature_end, progress)

    def required_inputs(self) -> Needs:
        return super().required_inputs() | Needs(labels=self.objective == "ard" and self.labels)

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.low >= self.high:
            yield f"--low {self.low:g} is not below --high {self.high:g}"
        if any(value <= 0 for value in self.std):
            yield "--std must be above 0"

    def incompatible_task(self, task: Task) -> str:
        return "" if isinstance(task, Classification) else "it attacks and compares classes, so it works only for classification"

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return Attacked(self, context)

    def attack(self, model: nn.Module, teacher: Tensor, step: Step) -> Tensor:
        """The batch's inputs, changed by an attack on `model`; its modes and flags are restored, and its weights get no gradient.

        Args:
            teacher: logits for the clean inputs.
        """

        def loss(inputs: Tensor) -> Tensor:
            output = with_inputs(step.batch, inputs).call(model)
            if self.objective == "ard" and self.labels:
                return label_losses(step.task, output, step.batch)
            predicted = step.task.prediction(output, step.batch)
            if self.objective == "ard":
                return cross_entropy(predicted, teacher.argmax(-1)).flatten(1).sum(1) if predicted.ndim > 2 else cross_entropy(predicted, teacher.argmax(-1))
            return soft_labels(predicted, teacher, self.temperature_at(step.progress))

        with frozen(model):
            return pgd(loss, moved_part(step.batch), self.threat, self.attack_steps, self.random_start)

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        step = seen.step
        moved = with_inputs(step.batch, self.attack(step.model, seen.teacher.dense, step))
        predicted = step.task.prediction(moved.call(step.model), moved)
        temperature = self.temperature_at(step.progress)
        if self.objective == "ard":
            yield Term("ard", soft_labels(predicted, seen.teacher.dense, temperature))
        else:
            yield Term("rslad", robust_soft_labels(predicted, seen.student.logits, seen.teacher.dense, temperature))


class Attacked(DistillPart):
    """A part with attacked inputs; robust accuracy is reported before and after."""

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
        """Accuracy on the evaluation data, clean and attacked; empty without labelled evaluation data."""
        data = self.context.objects.get("eval")
        if not self.stage.measure or data is None or not data.labelled:
            return {}
        device = device_of(model)

        def call(batch: Batch) -> Any:
            self.context.check_cancelled()
            return batch.call(model)

        here = Data(lambda: (batch.to(device) for batch in data.batches()), data.reason)
        with frozen(model):
            return robust_accuracy(call, here, self.stage.threat, items=self.stage.measure, task=self.context.task, seed=self.context.seed)

    def close(self, model: nn.Module) -> None:
        super().close(model)
        if getattr(self, "stepped", False) and self.before and not self.context.channel.cancelled():
            after = self.measured(model)
            texts = ", ".join(f"{name} {self.before[name]:.3f} -> {after[name]:.3f}" for name in after)
            self.context.note(f"accuracy on eval: {texts} (PGD-{EVALUATION_STEPS}, epsilon {self.stage.epsilon:.3g})")

"""Adversarial distillation: the student learns the teacher's answers where an attacker has moved the inputs.

Goldblum, Fowl, Feizi, Goldstein, "Adversarially Robust Distillation", 2020 (arXiv:1905.09747): ARD.
Zi, Zhao, Ma, Jiang, "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better", 2021
(arXiv:2108.07969): RSLAD. The attack: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018
(arXiv:1706.06083): PGD.

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

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit.contract import Needs, param
from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.models import frozen
from kdkit.seeding import seeded
from kdkit.tasks import Classification, Task
from kdkit.tasks.classes import cross_entropy
from kdkit.training import Step, Term, TrainPart
from kdkit_distill.lesson import DistillStage, Lesson
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.signals import Exchange

if TYPE_CHECKING:
    from kdkit.context import Context

EVALUATION_STEPS = 20
"""Of the attack under which robust accuracy is told."""

MOVED, CLEAN = 5 / 6, 1 / 6
"""The shares of the attacked and of the clean inputs in RSLAD."""

Call = Callable[[Batch], Any]
"""What gives a model's output for a batch, with a graph."""


# The attack ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threat:
    """What an attacker may do to an input, in pixel units: as it was before it was normalised.

    Attributes:
        epsilon: the furthest that any value may be moved.
        step: how far one step of the attack moves it.
        low, high: the range of the pixels.
        mean, std: of the normalisation that the inputs went through, one a channel; none where they are pixels.

    >>> Threat(0.1, 0.02).room(torch.tensor([[0.05, 0.5]]))
    (tensor([[0.0000, 0.4000]]), tensor([[0.1500, 0.6000]]))
    """

    epsilon: float = 8 / 255
    step: float = 2 / 255
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def scale(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the normalisation, in a shape that fits the inputs, (batch, channels, ...).

        Raises:
            KdError: there are neither one nor as many as the inputs have channels.
        """
        shape = (1, -1, *[1] * (inputs.ndim - 2)) if inputs.ndim > 1 else (-1,)
        found = [torch.tensor(values or (plain,), dtype=inputs.dtype, device=inputs.device).view(shape) for values, plain in ((self.mean, 0.0), (self.std, 1.0))]
        channels = inputs.shape[1] if inputs.ndim > 1 else 1
        if any(each.numel() not in (1, channels) for each in found):
            raise KdError(
                f"--mean has {len(self.mean)} values and --std {len(self.std)}, and the inputs {tuple(inputs.shape)} have {channels} channels",
                "give one a channel, or one for all",
            )
        return found[0], found[1]

    def room(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest that each value of the inputs may become, in their own units."""
        mean, std = self.scale(inputs)
        least, greatest = (self.low - mean) / std, (self.high - mean) / std
        reach = self.epsilon / std
        return torch.maximum(inputs - reach, least), torch.minimum(inputs + reach, greatest)

    def check(self, inputs: Tensor) -> None:
        """See that the inputs are what the threat takes them for.

        Raises:
            KdError: some lie outside the range of the pixels.
        """
        mean, std = self.scale(inputs)
        pixels = inputs * std + mean
        # a normalisation in float32 comes back inexact
        slack = 1e-3 * (self.high - self.low)
        if pixels.min() < self.low - slack or pixels.max() > self.high + slack:
            undone = ", with --mean and --std undone," if self.mean or self.std else ""
            raise KdError(
                f"the inputs{undone} go from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}, and the attack is clamped to {self.low:g} to {self.high:g}",
                "normalised inputs: say how, so that epsilon is in pixels: --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
                "other units: --low and --high give their range, --epsilon and --attack-step the distances in them",
            )


def pgd(loss: Callable[[Tensor], Tensor], inputs: Tensor, threat: Threat, steps: int, random_start: bool = True) -> Tensor:
    """Projected gradient ascent on a loss within the threat's reach: x' = clamp(x' + step · sign(d loss / d x')).

    Args:
        loss: of inputs, one value an item; nothing but its gradient by the inputs is taken.
        inputs: (batch, ...) floating, left as they are.
        threat: how far and in which range.
        steps: of the ascent.
        random_start: begin anywhere within reach (torch's generator) instead of at the inputs.

    Returns:
        The moved inputs, without a graph.

    >>> moved = pgd(lambda x: x.sum(-1), torch.tensor([[0.5, 0.99]]), Threat(0.1, 0.05), steps=4, random_start=False)
    >>> moved
    tensor([[0.6000, 1.0000]])
    """
    inputs = inputs.detach()
    least, greatest = threat.room(inputs)
    _, std = threat.scale(inputs)
    stride, reach = threat.step / std, threat.epsilon / std
    # inputs that were outside the range by rounding stay there rather than be pulled in
    least, greatest = torch.minimum(least, inputs), torch.maximum(greatest, inputs)
    moved = inputs + (2 * torch.rand_like(inputs) - 1) * reach if random_start else inputs.clone()
    moved = moved.clamp(least, greatest)
    for _ in range(steps):
        moved = moved.requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(loss(moved).sum(), moved)
        moved = (moved.detach() + stride * slope.sign()).clamp(least, greatest)
    return moved.detach()


def robust_accuracy(
    call: Call, data: Data, threat: Threat | None = None, steps: int = EVALUATION_STEPS, items: int | None = None, task: Task | None = None, seed: int = 0
) -> dict[str, float]:
    """The share of right answers on clean inputs, and on the same inputs after PGD on the cross entropy.

    Args:
        call: the model as a function of a batch, in eval mode; see `kdkit.models.frozen`.
        data: labelled.
        threat: epsilon 8/255 in steps of 2/255 on pixels from 0 to 1 when not said.
        steps: of the attack.
        items: only about so many, from the beginning of the data.
        task: a classification.
        seed: of the random start; the caller's generators stay as they were.

    Returns:
        "clean" and "robust", 0 to 1.

    Raises:
        KdError: the inputs are not one float tensor, outside the threat's range, or without labels.

    >>> data = Data(lambda: [(torch.tensor([[0.2], [0.8], [0.49]]), torch.tensor([0, 1, 0]))], "three items")
    >>> robust_accuracy(lambda batch: torch.cat([0.5 - batch.args[0], batch.args[0] - 0.5], 1), data, Threat(0.1, 0.05))
    {'clean': 1.0, 'robust': 0.6666666865348816}
    """
    threat, task = threat or Threat(), task or Classification()
    right, counted, seen = torch.zeros(2, dtype=torch.float64), 0, 0
    with seeded(seed):
        for batch in data.batches():
            threat.check(moved_part(batch))
            moved = pgd(lambda x, batch=batch: losses(task, call(with_inputs(batch, x)), batch), moved_part(batch), threat, steps)  # type: ignore[misc]
            with torch.no_grad():
                for number, each in enumerate((batch, with_inputs(batch, moved))):
                    scores, kept = task.scores(call(each), each)["accuracy"], task.labelled(each)
                    right[number] += (scores if kept is None else scores[kept]).sum().double().cpu()
            counted, seen = counted + task.count(batch), seen + batch.size
            if items is not None and seen >= items:
                break
    if not counted:
        raise KdError(f"not one label of {data.why} counts", "robust accuracy needs labels")
    return dict(zip(("clean", "robust"), (right / counted).float().tolist(), strict=True))


def losses(task: Task, output: Any, batch: Batch) -> Tensor:
    """The task's label losses, one an item: (batch,)."""
    values = task.losses(output, batch)
    return values if values.ndim == 1 else values.flatten(1).sum(1)


def moved_part(batch: Batch) -> Tensor:
    """The tensor of a batch that an attacker moves: its only input.

    Raises:
        KdError: it has several, or none of floating numbers.

    >>> moved_part(Batch((torch.zeros(2, 3),))).shape
    torch.Size([2, 3])
    """
    inputs = [*batch.args, *batch.kwargs.values()]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        raise KdError(f"an attack moves one tensor of floats, and the batch has {batch}", "images and waveforms can be attacked; token numbers can't be moved a little")
    return inputs[0]


def with_inputs(batch: Batch, inputs: Tensor) -> Batch:
    """The same batch with other inputs.

    >>> with_inputs(Batch(kwargs={"pixel_values": torch.zeros(1)}), torch.ones(1)).kwargs["pixel_values"]
    tensor([1.])
    """
    return replace(batch, args=(inputs,)) if batch.args else replace(batch, kwargs=dict.fromkeys(batch.kwargs, inputs))


# The objective -------------------------------------------------------------------------------------------------------


def robust_soft_labels(moved: Tensor, clean: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """RSLAD: 5/6 · T² KL(teacher ‖ student on moved inputs) + 1/6 · T² KL(teacher ‖ student on clean inputs).

    The mean over a batch is batchmean; the authors' code takes the mean over classes too, and is smaller by their number.

    Args:
        moved, clean: the student's logits, (..., classes).
        teacher: logits for the clean inputs, of the same shape.
        temperature: T; 1 in the paper.

    Returns:
        (...), at least float32.

    >>> robust_soft_labels(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    tensor([0., 0.])
    """
    return MOVED * soft_labels(moved, teacher, temperature) + CLEAN * soft_labels(clean, teacher, temperature)


class Adversarial(DistillStage):
    """Learn the teacher's answers on inputs that an attacker has moved, so that the student withstands such attacks.

    x' is x moved by PGD against the student, at most --epsilon a pixel.
    ard: alpha · T² KL(T(x) ‖ S(x')) + (1 - alpha) · label loss on x; x' raises the student's label loss; T = 30.
    rslad: alpha · [5/6 KL(T(x) ‖ S(x')) + 1/6 KL(T(x) ‖ S(x))] + (1 - alpha) · label loss on x; x' raises KL(T(x) ‖ S(x')).

    The teacher must be robust itself. Accuracy under PGD-20 on the evaluation data is told before and after.
    """

    id: ClassVar[str] = "distill.adversarial"
    compares_logits: ClassVar[bool] = True

    objective: Literal["ard", "rslad"] = param("rslad", "whose loss and attack: ard attacks the labels, rslad the teacher's soft answers")
    alpha: float = param(1.0, "share of the teacher in the loss; the rest is the labels', on clean inputs", gt=0, le=1, search=(0.5, 1.0))
    temperature: float | None = param(None, "softens both distributions; 30 for ard and 1 for rslad when not said", gt=0)
    epsilon: float = param(8 / 255, "the furthest a pixel is moved, in units of the inputs before normalisation", gt=0)
    attack_step: float = param(2 / 255, "how far one step of the attack moves a pixel", gt=0)
    attack_steps: int = param(10, "steps of the attack; each costs a forward and a backward pass", ge=1)
    random_start: bool = param(True, "begin the attack anywhere within epsilon; --no-random-start at the input")
    low: float = param(0.0, "least value of a pixel")
    high: float = param(1.0, "greatest value of a pixel")
    mean: tuple[float, ...] = param((), "of the normalisation that the data went through, one a channel or one for all")
    std: tuple[float, ...] = param((), "of that normalisation")
    measure: int = param(512, "items of the evaluation data on which accuracy under attack is told before and after; 0 for none", ge=0, advanced=True)

    @property
    def threat(self) -> Threat:
        """What the attacker may do."""
        return Threat(self.epsilon, self.attack_step, self.low, self.high, self.mean, self.std)

    @property
    def softness(self) -> float:
        """The temperature, the paper's own where none is said."""
        return self.temperature or (30.0 if self.objective == "ard" else 1.0)

    def needed(self) -> Needs:
        return replace(super().needed(), labels=self.share < 1 or (self.objective == "ard" and self.labels))

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
                return losses(step.task, output, step.batch)
            said = step.task.prediction(output, step.batch)
            if self.objective == "ard":
                return cross_entropy(said, teacher.argmax(-1)).flatten(1).sum(1) if said.ndim > 2 else cross_entropy(said, teacher.argmax(-1))
            return soft_labels(said, teacher, self.softness)

        with frozen(model):
            return pgd(loss, moved_part(step.batch), self.threat, self.attack_steps, self.random_start)

    def terms(self, seen: Exchange) -> Iterable[Term]:
        step = seen.step
        moved = with_inputs(step.batch, self.attack(step.model, seen.teacher.dense, step))
        said = step.task.prediction(moved.call(step.model), moved)
        if self.objective == "ard":
            yield Term("ard", soft_labels(said, seen.teacher.dense, self.softness))
        else:
            yield Term("rslad", robust_soft_labels(said, seen.student.logits, seen.teacher.dense, self.softness))


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
        device = next(model.parameters()).device

        def call(batch: Batch) -> Any:
            self.context.check_cancelled()
            return batch.call(model)

        here = Data(lambda: (batch.to(device) for batch in _some(data, self.stage.measure)), data.why)
        with frozen(model):
            return robust_accuracy(call, here, self.stage.threat, task=self.context.task, seed=self.context.seed)

    def close(self, model: nn.Module) -> None:
        super().close(model)
        if getattr(self, "stepped", False) and self.before and not self.context.cancelled.is_set():
            after = self.measured(model)
            told = ", ".join(f"{name} {self.before[name]:.3f} -> {after[name]:.3f}" for name in after)
            self.context.note(f"accuracy on eval: {told} (PGD-{EVALUATION_STEPS}, epsilon {self.stage.epsilon:.3g})")


def _some(data: Data, items: int) -> Iterator[Batch]:
    """Whole batches, until there are so many items."""
    seen = 0
    for batch in islice(data.batches(), items):
        yield batch
        seen += batch.size
        if seen >= items:
            return

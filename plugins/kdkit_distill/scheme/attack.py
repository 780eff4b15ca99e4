"""The attack: inputs changed by projected gradient ascent within an attacker's limits (PGD), and accuracy under attack.

Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018
(arXiv:1706.06083).

Pitfalls: accuracy under PGD is an upper bound, and stronger attacks (AutoAttack) find more. An attack clamped to the wrong range
of pixels has no effect, so inputs outside the range are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdkit import Batch, Data, KdError, Task
from kdkit.guards import seeded
from kdkit.tasks import Classification

EVALUATION_STEPS = 20
"""Steps of the attack that robust accuracy is measured with."""

Call = Callable[[Batch], Any]
"""A function that returns a model's output for a batch, with a graph."""


@dataclass(frozen=True)
class Threat:
    """How an attacker may change an input, in pixel values, before normalisation.

    Attributes:
        epsilon: the largest change of a value.
        step: the change in one step of the attack.
        low, high: the range of the pixels.
        mean, std: of the inputs' normalisation, one for each channel; empty if they are pixels.

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
            KdError: there is neither one value nor one for each channel.
        """
        shape = (1, -1, *[1] * (inputs.ndim - 2)) if inputs.ndim > 1 else (-1,)
        found = [torch.tensor(values or (plain,), dtype=inputs.dtype, device=inputs.device).view(shape) for values, plain in ((self.mean, 0.0), (self.std, 1.0))]
        channels = inputs.shape[1] if inputs.ndim > 1 else 1
        if any(each.numel() not in (1, channels) for each in found):
            raise KdError(
                f"--mean has {len(self.mean)} values and --std {len(self.std)}, but the inputs {tuple(inputs.shape)} have {channels} channels",
                "pass one for each channel, or one for all",
            )
        return found[0], found[1]

    def room(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest value that an attack may set at each place of the inputs, in their own units."""
        mean, std = self.scale(inputs)
        least, greatest = (self.low - mean) / std, (self.high - mean) / std
        reach = self.epsilon / std
        return torch.maximum(inputs - reach, least), torch.minimum(inputs + reach, greatest)

    def check(self, inputs: Tensor) -> None:
        """Check that the inputs are in the range of the pixels.

        Raises:
            KdError: some are outside it.
        """
        mean, std = self.scale(inputs)
        pixels = inputs * std + mean
        # undoing a normalisation in float32 is inexact
        slack = 1e-3 * (self.high - self.low)
        if pixels.min() < self.low - slack or pixels.max() > self.high + slack:
            undone = ", with --mean and --std undone," if self.mean or self.std else ""
            raise KdError(
                f"the inputs{undone} go from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}, but the attack is clamped to {self.low:g} to {self.high:g}",
                "for normalised inputs, pass mean and std, so that epsilon is in pixel values: --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
                "for other units, set their range with --low and --high, and --epsilon and --attack-step in these units",
            )


def pgd(loss: Callable[[Tensor], Tensor], inputs: Tensor, threat: Threat, steps: int, random_start: bool = True) -> Tensor:
    """Projected gradient ascent on a loss within the threat's limits: x' = clamp(x' + step · sign(d loss / d x')).

    Args:
        loss: maps inputs to one value for each item; only its gradient with respect to the inputs is computed.
        inputs: (batch, ...) floating, not modified.
        threat: the limits.
        steps: of the ascent.
        random_start: start anywhere within the limits (torch's generator) instead of at the inputs.

    Returns:
        The changed inputs, without a graph.

    >>> moved = pgd(lambda x: x.sum(-1), torch.tensor([[0.5, 0.99]]), Threat(0.1, 0.05), steps=4, random_start=False)
    >>> moved
    tensor([[0.6000, 1.0000]])
    """
    inputs = inputs.detach()
    least, greatest = threat.room(inputs)
    _, std = threat.scale(inputs)
    stride, reach = threat.step / std, threat.epsilon / std
    # inputs that are outside the range by rounding are not clamped into it
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
    """The accuracy on clean inputs, and on the same inputs after PGD on the cross entropy.

    Args:
        call: the model as a function of a batch, in eval mode; see `kdkit.models.evaluation.frozen`.
        data: labelled.
        threat: epsilon 8/255 in steps of 2/255 on pixels from 0 to 1 by default.
        steps: of the attack.
        items: about how many to use, from the beginning of the data.
        task: a classification.
        seed: of the random start; the caller's generators are restored.

    Returns:
        "clean" and "robust", 0 to 1.

    Raises:
        KdError: the inputs are not one float tensor, are outside the threat's range, or have no labels.

    >>> data = Data(lambda: [(torch.tensor([[0.2], [0.8], [0.49]]), torch.tensor([0, 1, 0]))], "three items")
    >>> robust_accuracy(lambda batch: torch.cat([0.5 - batch.args[0], batch.args[0] - 0.5], 1), data, Threat(0.1, 0.05))
    {'clean': 1.0, 'robust': 0.6666666865348816}
    """
    threat, task = threat or Threat(), task or Classification()
    right, counted, seen = torch.zeros(2, dtype=torch.float64), 0, 0
    with seeded(seed):
        for batch in data.batches():
            threat.check(moved_part(batch))
            moved = pgd(lambda x, batch=batch: label_losses(task, call(with_inputs(batch, x)), batch), moved_part(batch), threat, steps)  # type: ignore[misc]
            with torch.no_grad():
                for number, each in enumerate((batch, with_inputs(batch, moved))):
                    scores, kept = task.scores(call(each), each)["accuracy"], task.labelled(each)
                    right[number] += (scores if kept is None else scores[kept]).sum().double().cpu()
            counted, seen = counted + task.count(batch), seen + batch.size
            if items is not None and seen >= items:
                break
    if not counted:
        raise KdError(f"{data.reason} has no labels that count", "robust accuracy needs labels")
    return dict(zip(("clean", "robust"), (right / counted).float().tolist(), strict=True))


def label_losses(task: Task, output: Any, batch: Batch) -> Tensor:
    """The task's label losses, one for each item: (batch,)."""
    values = task.losses(output, batch)
    return values if values.ndim == 1 else values.flatten(1).sum(1)


def moved_part(batch: Batch) -> Tensor:
    """The tensor of a batch that an attacker changes: its only input.

    Raises:
        KdError: it has several inputs, or none of floating numbers.

    >>> moved_part(Batch((torch.zeros(2, 3),))).shape
    torch.Size([2, 3])
    """
    inputs = [*batch.args, *batch.kwargs.values()]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        raise KdError(
            f"an attack changes one tensor of floats, but the batch has {batch}", "images and waveforms can be attacked; token numbers can't be changed slightly"
        )
    return inputs[0]


def with_inputs(batch: Batch, inputs: Tensor) -> Batch:
    """The same batch with other inputs.

    >>> with_inputs(Batch(kwargs={"pixel_values": torch.zeros(1)}), torch.ones(1)).kwargs["pixel_values"]
    tensor([1.])
    """
    return replace(batch, args=(inputs,)) if batch.args else replace(batch, kwargs=dict.fromkeys(batch.kwargs, inputs))

"""Gradual pruning: weights go during training, few at a time, so that the others can take over.

Zhu, Gupta, "To prune, or not to prune", 2017 (arXiv:1710.01878): the automated gradual pruning (AGP) schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import pydantic
import torch
from torch import nn

from kdkit import Context, KdError, Needs, Step, Term, TrainPart, TrainStage, Trait, param
from kdkit_prune.masks import settle
from kdkit_prune.sparsity_patterns import Blocks, choose, parse_pattern
from kdkit_prune.weight_matrices import WeightMatrix, find_weights, share_of_zeros


class Gradual(TrainStage):
    """Set ever more weights to zero during training, the smallest first, by the cubic AGP schedule.

    The share of zeros after a share t of the schedule is s + (s₀ - s)·(1 - t)³, from the s₀ at the start to --ratio s: fast at first, while
    many weights are superfluous. Between two cuts the other weights train. In a `together:` group it goes with distillation or simulated
    quantization; --loss 0 then leaves the labels out. Masks hold the zeros until `prune fold`.
    """

    id: ClassVar[str] = "prune.gradual"
    known_as: ClassVar[tuple[str, ...]] = ("AGP", "gradual magnitude pruning", "GMP", "automated gradual pruning")
    requires: ClassVar[Iterable[str]] = {Trait.TRAINABLE, Trait.FLOAT_WEIGHTS}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.ONNX}
    adds: ClassVar[Iterable[str]] = {Trait.MASKS_PENDING}

    ratio: float = param(0.8, "share of the weights that are zero at the end", gt=0, lt=1, share="removed", search=(0.5, 0.95), main=True)
    begin: float = param(0.0, "share of the training before the first cut", ge=0, lt=1)
    end: float = param(0.75, "share of the training after which no more weights go; the rest of it heals", gt=0, le=1)
    cuts: int = param(20, "how many times weights go", ge=1)
    scope: Literal["row", "layer", "global"] = param("layer", "where the ratio holds: in each output, in each layer, or in all layers together")
    pattern: str = param("single", "single weights, or blocks of ROWSxCOLUMNS, such as 16x16")
    layers: tuple[str, ...] = param((), "patterns of the layers to prune; default: all linear layers and convolutions", names="layers")
    skip: tuple[str, ...] = param((), "patterns of the layers to leave alone, such as the head", names="layers")
    loss: float = param(1.0, "weight of the task's loss; 0 trains for the other stages of a together group only, and needs no labels", ge=0, advanced=True)

    @pydantic.field_validator("pattern")
    @classmethod
    def _is_blocks(cls, value: str) -> str:
        if not isinstance(parse_pattern(value), Blocks):
            raise ValueError("N:M has no gradual form; prune weights --pattern N:M, then train")
        return value

    def required_inputs(self) -> Needs:
        """Labels only for the task's loss."""
        return self.needs | Needs(labels=self.loss > 0)

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """An empty schedule, and layers that don't exist."""
        yield from super().check(model, context)
        find_weights(model, self.layers, self.skip)
        if self.begin >= self.end:
            yield f"prune gradual: --begin {self.begin:g} is not before --end {self.end:g}"

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Mask the weights; no weight is zero yet that was not before.

        Raises:
            KdError: no weight can be pruned, or the model has more zeros already.
        """
        weights, left = self._weights(model)
        if not weights:
            reasons = [f"left alone: {name or 'the model'}: {reason}" for name, reason in list(left.items())[:4]]
            raise KdError(f"prune gradual: no weight of {type(model).__name__} can be pruned", *(reasons or ["it has no linear layer and no convolution"]))
        zeros = share_of_zeros(weights)
        if zeros >= self.ratio:
            raise KdError(f"prune gradual: {zeros:.1%} of the weights are zero already, so --ratio {self.ratio:g} changes nothing", "give a larger --ratio")
        for weight in weights:
            rows = weight.rows
            weight.write(rows, torch.ones_like(rows, dtype=torch.bool))
        for name, reason in left.items():
            context.note(f"left alone: {name or 'the model'}: {reason}")
        return model

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return GradualPart(self, self._weights(model)[0])

    def finish(self, model: nn.Module, context: Context) -> nn.Module:
        """Forget what optimizers did to the values behind the masks."""
        settle(model)
        weights, _ = self._weights(model)
        context.note(f"zeros: {share_of_zeros(weights):.1%} of {sum(weight.tensor.numel() for weight in weights):,} weights in {len(weights)} layers")
        return model

    def share_at(self, progress: float, start: float) -> float:
        """The share of zeros at a progress of the training, from the share `start` before it; it changes at each cut only.

        >>> [round(Gradual(ratio=0.8, begin=0.2, end=0.6, cuts=4).share_at(progress, 0.0), 4) for progress in (0.1, 0.3, 0.35, 0.4, 0.6, 1.0)]
        [0.0, 0.4625, 0.4625, 0.7, 0.8, 0.8]
        """
        done = (progress - self.begin) / (self.end - self.begin)
        cut = min(int(done * self.cuts + 1e-9), self.cuts) / self.cuts if done > 0 else 0.0
        return self.ratio + (start - self.ratio) * (1 - cut) ** 3

    def _weights(self, model: nn.Module) -> tuple[list[WeightMatrix], dict[str, str]]:
        found, left = find_weights(model, self.layers, self.skip)
        pattern = parse_pattern(self.pattern)
        reasons = {weight.name: pattern.obstacle(weight.rows.shape[0], weight.inputs) for weight in found}
        return [weight for weight in found if not reasons[weight.name]], left | {name: reason for name, reason in reasons.items() if reason}


class GradualPart(TrainPart):
    """The task's loss, and a cut of the smallest weights whenever the schedule has one."""

    def __init__(self, stage: Gradual, weights: Sequence[WeightMatrix]):
        self.stage, self.weights = stage, weights
        self.start = self.now = share_of_zeros(weights)

    def terms(self, step: Step) -> Iterable[Term]:
        if self.stage.loss:
            yield Term.from_labels(step, self.stage.loss)

    def after_step(self, step: Step) -> None:
        wanted = self.stage.share_at(step.progress, self.start)
        if wanted <= self.now:
            return
        self.now = wanted
        with torch.no_grad():
            rows = [weight.rows for weight in self.weights]
            kept = choose([row.float().abs() for row in rows], wanted, self.stage.scope, parse_pattern(self.stage.pattern))
            for weight, row, keep in zip(self.weights, rows, kept, strict=True):
                weight.write(row, keep)

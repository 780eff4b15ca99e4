"""Iterative pruning: cut and train in rounds; with rewinding, the search for a winning ticket.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015 (arXiv:1506.02626); Frankle, Carbin, "The Lottery
Ticket Hypothesis", 2019 (arXiv:1803.03635).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import Context, Forecast, KdError, Needs, Step, Term, TrainPart, TrainStage, Trait, param
from kdkit_prune.masks import settle
from kdkit_prune.weight_matrices import find_weights, share_of_zeros
from kdkit_prune.weights import Weights


class Iterative(TrainStage):
    """Set weights to zero in rounds, with training on labels between them.

    Each round leaves the same share of the weights that the one before has left, so that --ratio are zero after the last. Then the model
    trains. With --rewind it trains before each cut, and the weights that stay go back to their values from before this stage: a ticket, the
    small network within the large one that trains as well from the same start. It trains once more at the end. Masks hold the zeros until
    `prune fold`.
    """

    id: ClassVar[str] = "prune.iterative"
    known_as: ClassVar[tuple[str, ...]] = ("IMP", "iterative magnitude pruning", "lottery ticket", "rewinding")
    needs: ClassVar[Needs] = Needs(train=True, labels=True)
    requires: ClassVar[Iterable[str]] = {Trait.TRAINABLE, Trait.FLOAT_WEIGHTS}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.ONNX}
    adds: ClassVar[Iterable[str]] = {Trait.MASKS_PENDING}
    shares_loop: ClassVar[bool] = False

    ratio: float = param(0.8, "share of the weights that are zero at the end", gt=0, lt=1, share="removed", search=(0.5, 0.95), main=True)
    rounds: int = param(4, "how many times weights go, each with --epochs or --steps of training", ge=1, main=True)
    rewind: bool = param(False, "put the weights that stay back to their values from before, after each cut; it needs one training more")
    method: Literal["magnitude", "lamp", "wanda"] = param("magnitude", "how to choose the weights; wanda uses calibration data")
    scope: Literal["row", "layer", "global"] | None = param(None, "where the ratio holds; default: as for prune weights")
    layers: tuple[str, ...] = param((), "patterns of the layers to prune; default: all linear layers and convolutions", names="layers")
    skip: tuple[str, ...] = param((), "patterns of the layers to leave alone, such as the head", names="layers")

    def required_inputs(self) -> Needs:
        """Calibration data for wanda."""
        return self.needs | Needs(calibration=self.method == "wanda")

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Layers that don't exist, and a checkpoint, which holds one training."""
        yield from super().check(model, context)
        if self.checkpoint or self.resume:
            yield "--checkpoint and --resume are for one training, and this stage runs several; leave them out"
        find_weights(model, self.layers, self.skip)

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The masks of the last round, by magnitude."""
        return self._cut(self.ratio).forecast(model, context)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return OnLabels()

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Cut and train in turn.

        Raises:
            KdError: no weight can be pruned, or the model has more zeros already.
        """
        zeros = share_of_zeros(find_weights(model, self.layers, self.skip)[0])
        if zeros >= self.ratio:
            raise KdError(f"prune iterative: {zeros:.1%} of the weights are zero already, so --ratio {self.ratio:g} changes nothing", "give a larger --ratio")
        start = {name: tensor.detach().clone() for name, tensor in _values(model).items()}
        for share in self.shares(zeros):
            if self.rewind:
                model = self.fit_with([], model, context)
            notes: list[str] = []
            model = self._cut(share).apply(model, replace(context, notes=notes))
            context.note(notes[0])
            if self.rewind:
                _rewind(model, start)
            else:
                model = self.fit_with([], model, context)
        return self.fit_with([], model, context) if self.rewind else model

    def shares(self, zeros: float) -> list[float]:
        """The share of zeros after each round, from the share that are zero before the first.

        >>> [round(share, 3) for share in Iterative(ratio=0.875, rounds=3).shares(0.0)]
        [0.5, 0.75, 0.875]
        """
        left = (1 - self.ratio) / (1 - zeros)
        return [1 - (1 - zeros) * left ** (number / self.rounds) for number in range(1, self.rounds + 1)]

    def _cut(self, share: float) -> Weights:
        return Weights(ratio=share, method=self.method, scope=self.scope, layers=self.layers, skip=self.skip)


class OnLabels(TrainPart):
    """The task's loss."""

    def terms(self, step: Step) -> Iterable[Term]:
        yield Term.from_labels(step)


def _rewind(model: nn.Module, start: Mapping[str, Tensor]) -> None:
    """Put weights and statistics back to values from before; weights behind masks stay zero."""
    with torch.no_grad():
        for name, tensor in _values(model).items():
            tensor.copy_(start[name])
    settle(model)


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, without masks, by the names that they have without masks."""
    parameters = {name.replace(".parametrizations", "").removesuffix(".original"): weight for name, weight in model.named_parameters()}
    return parameters | {name: buffer for name, buffer in model.named_buffers() if "parametrizations" not in name.split(".")}

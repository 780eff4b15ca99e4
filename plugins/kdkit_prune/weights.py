"""Weights: set single weights, N of M, or blocks to zero, and hold them there through later training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from kdkit import Context, Forecast, KdError, Needs, Stage, Trait, param
from kdkit.models import Storage
from kdkit_prune.importance import lamp
from kdkit_prune.input_moments import gram, groups_of, obstacle, passes, squares, sum_over_inputs
from kdkit_prune.reinitialization import reinitialize
from kdkit_prune.sparse_gpt import BLOCK, reconstruct
from kdkit_prune.sparsity_patterns import Blocks, Pattern, Scope, SemiStructured, choose, parse_pattern
from kdkit_prune.weight_matrices import WeightMatrix, count_zeros, expand_groups, find_weights, share_of_zeros, split_groups

Pruned = tuple[Tensor, Tensor]
"""The rows of a weight after pruning, and which of them are kept, both (outputs, inputs)."""

CALIBRATED = ("wanda", "sparsegpt")
"""Methods that look at the inputs of the layers."""


class Weights(Stage):
    """Set weights to zero, one by one, N of M, or in blocks, and hold them at zero through later training.

    magnitude: the smallest |w| go (Han et al., 2015, arXiv:1506.02626). lamp: w² over the sum of all at least as large in its layer, comparable
    over layers (Lee et al., 2021, arXiv:2010.07611). wanda: |w|·‖x‖, with the norm of the input that it multiplies (Sun et al., 2024,
    arXiv:2306.11695). sparsegpt: the weights that stay make up for those that go (Frantar, Alistarh, 2023, arXiv:2301.00774).

    Masks hold the zeros until `prune fold`, which kdkit inserts before an export. The version is stored sparse. It is no faster: dense
    kernels multiply zeros like other weights, and sparse kernels of CPUs win only above about 90 % of zeros. For speed use `prune channels`.
    """

    id: ClassVar[str] = "prune.weights"
    known_as: ClassVar[tuple[str, ...]] = ("unstructured pruning", "magnitude pruning", "Wanda", "SparseGPT", "2:4 sparsity", "semi-structured pruning")
    requires: ClassVar[Iterable[str]] = {Trait.FLOAT_WEIGHTS}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.ONNX}
    adds: ClassVar[Iterable[str]] = {Trait.MASKS_PENDING}

    ratio: float = param(0.5, "share of the weights to set to zero", gt=0, lt=1, share="removed", search=(0.3, 0.95), main=True)
    method: Literal["magnitude", "lamp", "wanda", "sparsegpt"] = param(
        "magnitude", "how to choose the weights; wanda and sparsegpt use calibration data, and sparsegpt also adapts those that stay", main=True
    )
    pattern: str = param(
        "single", "single weights, N:M (2:4 keeps two of four consecutive inputs, whatever --ratio is), or blocks of ROWSxCOLUMNS, such as 16x16", main=True
    )
    scope: Literal["row", "layer", "global"] | None = param(
        None, "where the ratio holds: in each output, in each layer, or in all layers together; default: row for wanda, as in its paper, else layer"
    )
    layers: tuple[str, ...] = param((), "patterns of the layers to prune; default: all linear layers and convolutions", names="layers")
    skip: tuple[str, ...] = param((), "patterns of the layers to leave alone, such as the head", names="layers")
    batches: int = param(16, "calibration batches for wanda and sparsegpt", ge=1)
    damping: float = param(0.01, "for sparsegpt: share of the mean second moment of the inputs that is added to each", ge=0, advanced=True)
    reinit: bool = param(False, "give all weights new random values afterwards, to compare the pruned structure trained from scratch (Liu et al., 2019)", advanced=True)

    @pydantic.field_validator("pattern")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        parse_pattern(value)
        return value

    @classmethod
    def suggestions(cls, parameter: str) -> Iterable[str]:
        """Common patterns."""
        return ("2:4", "4:8", "16x16") if parameter == "pattern" else super().suggestions(parameter)

    def required_inputs(self) -> Needs:
        return self.needs | Needs(calibration=self.method in CALIBRATED)

    def storage(self) -> Storage:
        """The zeros are left out of saved folders."""
        return Storage("sparse")

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Options that exclude each other, and layers that don't exist."""
        find_weights(model, self.layers, self.skip)
        pattern = parse_pattern(self.pattern)
        if isinstance(pattern, SemiStructured) and self.scope is not None:
            yield f"prune weights: --scope {self.scope} has no meaning with --pattern {self.pattern}, which holds in every group of {pattern.m}"
        if self.method == "sparsegpt" and self.scope in ("row", "global"):
            yield "prune weights: sparsegpt works layer by layer, so --scope is layer; --method wanda compares weights in rows or over all layers"
        if self.method == "sparsegpt" and isinstance(pattern, Blocks) and pattern != Blocks():
            yield "prune weights: sparsegpt has no form for blocks; --method wanda has"
        if self.method == "sparsegpt" and isinstance(pattern, SemiStructured) and BLOCK % pattern.m:
            yield f"prune weights: sparsegpt takes {BLOCK} inputs at a time, so M of --pattern N:M must divide {BLOCK}"

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The masks by magnitude: the structure does not depend on the data."""
        return Forecast(self.model_copy(update={"method": "magnitude"}).apply(model, context) if self.method in CALIBRATED else self.apply(model, context))

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Mask the weights.

        Raises:
            KdError: no weight can be pruned, or all that would go are zero already.
        """
        pattern = parse_pattern(self.pattern)
        found, left = find_weights(model, self.layers, self.skip)
        weights = [weight for weight in found if not left.setdefault(weight.name, self._obstacle(weight, pattern))]
        left = {name: reason for name, reason in left.items() if reason}
        if not weights:
            raise _nothing(model, left)
        before = share_of_zeros(weights)
        count = 0
        for done, (weight, (rows, keep)) in enumerate(self._pruned(model, weights, left, pattern, context)):
            context.progress(done, len(weights), weight.name)
            count += int(((weight.rows != 0) & ~keep).sum())
            weight.write(rows, keep)
        if not count:
            raise _nothing_new(self, before, model, left)
        if self.reinit:
            reinitialize(model, context.seed)
        self._report(model, [weight for weight in weights if weight.name not in left], left, context)
        return model

    def _obstacle(self, weight: WeightMatrix, pattern: Pattern) -> str:
        rows = weight.rows.shape[0]
        reason = obstacle(weight.layer) if self.method in CALIBRATED else ""
        return reason or pattern.obstacle(rows, weight.inputs)

    def _pruned(
        self, model: nn.Module, weights: Sequence[WeightMatrix], left: dict[str, str], pattern: Pattern, context: Context
    ) -> Iterable[tuple[WeightMatrix, Pruned]]:
        """The new rows of each weight; those that no calibration batch reached are added to `left` instead."""
        if self.method == "sparsegpt":
            for part in passes(weights):
                moments = sum_over_inputs(model, part, context.calibration(self.batches), gram)
                for weight in _reached(part, moments, left):
                    yield weight, self._reconstruct(weight, moments[weight.name], pattern)
            return
        norms = sum_over_inputs(model, weights, context.calibration(self.batches), squares) if self.method == "wanda" else {}
        reached = _reached(weights, norms, left) if self.method == "wanda" else list(weights)
        scores = [self._score(weight, norms.get(weight.name)) for weight in reached]
        for weight, keep in zip(reached, choose(scores, self.ratio, self._scope, pattern), strict=True):
            yield weight, (weight.rows, keep)

    @property
    def _scope(self) -> Scope:
        return self.scope or ("row" if self.method == "wanda" else "layer")

    def _score(self, weight: WeightMatrix, second_moments: Tensor | None) -> Tensor:
        """(outputs, inputs), in float32."""
        rows = weight.rows.float()
        if second_moments is not None:
            return rows.abs() * expand_groups(second_moments.sqrt(), rows.shape[0])
        return lamp(rows.reshape(-1, 1)).reshape(rows.shape) if self.method == "lamp" else rows.abs()

    def _reconstruct(self, weight: WeightMatrix, moments: Tensor, pattern: Pattern) -> Pruned:
        semi_structured = pattern if isinstance(pattern, SemiStructured) else None
        rows = weight.rows
        parts = [
            reconstruct(own.float(), moment, self.ratio, semi_structured, self.damping)
            for own, moment in zip(split_groups(rows, groups_of(weight.layer)), moments, strict=True)
        ]
        return torch.cat([part for part, _ in parts]).to(rows.dtype), torch.cat([keep for _, keep in parts])

    def _report(self, model: nn.Module, weights: Sequence[WeightMatrix], left: dict[str, str], context: Context) -> None:
        shares = {weight.name: count_zeros(weight.rows) / weight.rows.numel() for weight in weights}
        total, every = sum(weight.tensor.numel() for weight in weights), sum(weight.numel() for weight in model.parameters())
        context.note(f"zeros: {share_of_zeros(weights):.1%} of {total:,} weights in {len(weights)} layers, which hold {total / every:.0%} of the parameters")
        least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        if shares[most] - shares[least] > 0.01:
            context.note(f"least: {shares[least]:.0%} in {least}; most: {shares[most]:.0%} in {most}")
        context.note("no faster: dense kernels multiply zeros like other weights; saved folders leave the zeros out")
        if tied := [weight.name for weight in weights if len(weight.places) > 1]:
            context.note(f"tied weights are masked wherever they are used: {', '.join(tied)}")
        for line in _reasons(left):
            context.note(line)


def _reached(weights: Sequence[WeightMatrix], moments: dict[str, Tensor], left: dict[str, str]) -> list[WeightMatrix]:
    left |= {weight.name: "no calibration batch reached its forward" for weight in weights if weight.name not in moments}
    return [weight for weight in weights if weight.name in moments]


def _reasons(left: dict[str, str]) -> list[str]:
    names: dict[str, list[str]] = {}
    for name, reason in left.items():
        names.setdefault(reason, []).append(name or "the model")
    return [f"left alone: {', '.join(some[:4])}{f' and {len(some) - 4} more' if len(some) > 4 else ''}: {reason}" for reason, some in names.items()]


def _nothing(model: nn.Module, left: dict[str, str]) -> KdError:
    return KdError(f"prune weights: no weight of {type(model).__name__} can be pruned", *(_reasons(left)[:6] or ["it has no linear layer and no convolution"]))


def _nothing_new(stage: Weights, before: float, model: nn.Module, left: dict[str, str]) -> KdError:
    if left and not before:
        return _nothing(model, left).with_hints(f"--ratio {stage.ratio:g} removes nothing from the smallest of layers; a larger one does")
    return KdError(
        f"prune weights: --ratio {stage.ratio:g} sets no further weight to zero; {before:.1%} of them are zero already",
        "give a larger --ratio: it counts the zeros that are there",
    )

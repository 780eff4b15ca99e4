"""Cross-layer equalization: weights whose channels have similar ranges, so that one scale fits them all.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019 (arXiv:1906.04721).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdkit import Context, KdError, Needs, Stage, Trait, param
from kdkit_quantize.channel_groups import ChannelGroup, Reader, channel_groups

ROUNDS = 40
CONVERGED = 1e-3
"""Largest change of a factor, as a logarithm, that ends the rounds."""


class Equalize(Stage):
    """Rescale channels between layers so that their weights have equal ranges; before quantization, above all with one scale for a whole weight.

    The factor of channel i is s_i = sqrt(r_i^out / r_i^in): r^out is the largest |weight| that makes it, with its BatchNorm folded in, r^in the
    largest that reads it. The layers that make it are divided by s_i, those that read it multiplied: ReLU, pooling and sums let a factor pass, so the
    outputs stay the same. Layers beside other activations (GELU, sigmoid, ReLU6) are left alone.

    `--absorb` also moves what a ReLU never cuts, max(0, β − 3|γ|) of a BatchNorm, into the biases behind it. That is not exact.
    """

    id: ClassVar = "quantize.equalize"
    known_as: ClassVar[tuple[str, ...]] = ("CLE", "cross-layer equalization", "data-free quantization", "DFQ")
    needs: ClassVar = Needs(example=True)
    requires: ClassVar = frozenset({Trait.FLOAT_WEIGHTS})
    forbids: ClassVar = frozenset({Trait.ONNX, Trait.MASKS_PENDING, Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT})

    absorb: bool = param(False, "move high biases behind the next layer; changes the outputs a little")

    @property
    def keeps_values(self) -> bool:
        """Equalization alone keeps the outputs."""
        return not self.absorb

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Find the groups of channels, and equalize them in turn until nothing moves."""
        groups = channel_groups(model, context.example)
        if not groups:
            raise KdError(
                f"quantize equalize: {type(model).__name__} has no channels that can be rescaled",
                "it needs two layers with nothing but BatchNorm, ReLU, pooling or sums between them",
            )
        with torch.no_grad():
            before = [_spread(model, group) for group in groups]
            for done in range(ROUNDS):
                context.progress(done, ROUNDS, "equalizing")
                context.check_cancelled()
                if max([equalize(model, group) for group in groups]) < CONVERGED:
                    break
            absorbed = sum(absorb(model, group) for group in groups) if self.absorb else 0
            widest = max(range(len(groups)), key=before.__getitem__)
            after = _spread(model, groups[widest])
        context.note(f"{len(groups)} groups of channels equalized, {sum(group.channels for group in groups)} channels")
        context.note(f"largest ratio between channel ranges: {before[widest]:.3g} became {after:.3g} in {groups[widest].makers[0].layer}")
        if self.absorb:
            context.note(f"{absorbed} biases absorbed")
        return model


def equalize(model: nn.Module, group: ChannelGroup) -> float:
    """Give each channel of a group the same range where it is made and where it is read, in place.

    Returns:
        The largest |log factor|; 0 when they were equal already.
    """
    made, read = ranges_of(model, group)
    factors = (made / read).sqrt()
    factors = torch.where(torch.isfinite(factors) & (factors > 0), factors, torch.ones_like(factors))
    for maker in group.makers:
        last: Any = model.get_submodule(maker.norm or maker.layer)
        for tensor in (last.weight, last.bias):
            if tensor is not None:
                tensor /= factors.reshape(-1, *[1] * (tensor.dim() - 1))
    for reader in group.readers:
        _multiply(model.get_submodule(reader.layer), reader.repeat, factors)
    return float(factors.log().abs().max())


def ranges_of(model: nn.Module, group: ChannelGroup) -> tuple[Tensor, Tensor]:
    """The largest |weight| that makes each channel and that reads it, (channels,) each; BatchNorms count as folded in."""
    made = [_folded(model, maker.layer, maker.norm).flatten(1).abs().amax(1) for maker in group.makers]
    read = []
    for reader in group.readers:
        kernels = _kernels(_folded(model, reader.layer, reader.norm), reader.repeat).abs().amax(2)
        read.append(_by_group(kernels, model.get_submodule(reader.layer)).amax(1).flatten())
    return torch.stack(made).amax(0), torch.stack(read).amax(0)


def absorb(model: nn.Module, group: ChannelGroup) -> int:
    """Move what a ReLU never cuts of a group's channels into the biases behind it, in place.

    Left alone are groups of several makers, and layers that pad with zeros, which are no longer the value of an empty channel.

    Returns:
        How many channels.
    """
    readers: list[tuple[Reader, Any]] = [(reader, model.get_submodule(reader.layer)) for reader in group.readers]
    apart = all(getattr(layer, "padding", 0) in (0, (0,), (0, 0), (0, 0, 0), "valid") and (reader.norm or layer.bias is not None) for reader, layer in readers)
    if len(group.makers) > 1 or not group.makers[0].norm or not group.rectified or not apart:
        return 0
    norm: Any = model.get_submodule(group.makers[0].norm)
    high = (norm.bias - 3 * norm.weight.abs()).clamp(min=0)
    norm.bias -= high
    for reader, layer in readers:
        kernels = _by_group(_kernels(layer.weight, reader.repeat).sum(2), layer)
        added = (kernels * high.view(kernels.shape[0], 1, -1)).sum(2).flatten()
        if reader.norm:
            following: Any = model.get_submodule(reader.norm)
            following.running_mean -= added
        else:
            layer.bias += added
    return int((high > 0).sum())


def _folded(model: nn.Module, layer: str, norm: str) -> Tensor:
    """The weight of a layer with its BatchNorm: γ / sqrt(variance + ε) times each row."""
    weight: Any = model.get_submodule(layer).weight
    if not norm:
        return weight
    following: Any = model.get_submodule(norm)
    factor = following.weight / (following.running_var + following.eps).sqrt()
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1))


def _kernels(weight: Tensor, repeat: int) -> Tensor:
    """A weight as (outputs, inputs of a group, numbers for an input)."""
    return weight.unflatten(1, (-1, repeat)) if weight.dim() == 2 else weight.flatten(2)


def _by_group(matrix: Tensor, layer: nn.Module) -> Tensor:
    """(outputs, inputs of a group) as (groups, outputs of a group, inputs of a group)."""
    return matrix.unflatten(0, (getattr(layer, "groups", 1), -1))


def _multiply(layer: nn.Module, repeat: int, factors: Tensor) -> None:
    """Multiply what a layer reads from each channel by its factor, in place."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    assert isinstance(weight, Tensor)
    rows = factors.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).flatten(0, 1)
    weight *= rows.repeat_interleave(repeat, 1).reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))


def _spread(model: nn.Module, group: ChannelGroup) -> float:
    """The largest ratio between the ranges of two channels, where they are made or read; dead channels don't count."""
    return max(float(each.max() / each[each > 0].min()) if (each > 0).any() else 1.0 for each in ranges_of(model, group))

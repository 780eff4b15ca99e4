"""Separable: a convolution as one for each input channel and one of 1x1 across channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdkit import Batch, Context, param
from kdkit_decompose.aware_stage import AwareStage
from kdkit_decompose.factors import finish_layers
from kdkit_decompose.forms import CHANNEL, CONVOLUTIONS, convolution_kind, reading_options
from kdkit_decompose.layer_stage import TRANSPOSED, Replacement
from kdkit_decompose.moments import run_watched


@dataclass
class SeparableConvolution(Replacement):
    """A depthwise convolution with `multiplier` kernels for each input channel, and one of 1x1."""

    layer: Any
    ranks: tuple[int]
    pointwise: Tensor | None = None

    @property
    def multiplier(self) -> int:
        return self.ranks[0]

    @property
    def weights(self) -> int:
        outputs, inputs, *kernel = self.layer.weight.shape
        return inputs * self.multiplier * (math.prod(kernel) + outputs)

    def structure(self) -> nn.Sequential:
        layer, kind = self.layer, convolution_kind(self.layer)
        inner = layer.in_channels * self.multiplier
        depthwise = kind(layer.in_channels, inner, layer.kernel_size, groups=layer.in_channels, bias=False, **reading_options(layer))
        return finish_layers(layer, depthwise, kind(inner, layer.out_channels, 1, bias=layer.bias is not None))

    def made(self) -> nn.Sequential:
        made = self.structure()
        depthwise, pointwise = factorize(self.layer.weight.detach().float(), self.multiplier)
        for part, weight in zip(made, (depthwise, pointwise if self.pointwise is None else self.pointwise), strict=True):
            part.get_parameter("weight").data.copy_(weight.reshape(part.get_parameter("weight").shape))
        return made


class Separable(AwareStage):
    """Replace convolutions by depthwise separable ones: kernels for each input channel, and a convolution of 1x1 across channels.

    Howard et al., "MobileNets", 2017 (arXiv:1704.04861); initialised as in Guo et al., "Network Decoupling", 2018 (arXiv:1808.05517): for
    each input channel the first m singular vectors of its kernels (out, k²). A weight (out, in, k, k) becomes in·m·(k² + out) parameters.
    Where the session has data, the 1x1 convolution is fitted to the layer's outputs by least squares. It loses much without training:
    `distill soft` or `tune finetune` afterwards.

    Left alone, and named in the notes: kernels of one position, layers where it would cost parameters or time, and what `decompose svd`
    leaves alone too.
    """

    id: ClassVar = "decompose.separable"
    known_as: ClassVar[tuple[str, ...]] = ("depthwise separable", "network decoupling")
    works_on: ClassVar = "convolutions"
    keep_less: ClassVar = "a smaller --multiplier"

    multiplier: int = param(1, "kernels for each input channel: the first so many singular vectors", ge=1, search=(1, 4), main=True)

    def kinds(self) -> tuple[type, ...]:
        return (*CONVOLUTIONS, *TRANSPOSED)

    def obstacle(self, layer: Any) -> str:
        return super().obstacle(layer) or ("a kernel of one position" if set(layer.kernel_size) == {1} else "")

    def replacements(self, model: nn.Module, layers: Mapping[str, Any], context: Context, *, with_data: bool) -> dict[str, Replacement]:
        rank = {name: min(self.multiplier, layer.out_channels, math.prod(layer.kernel_size)) for name, layer in layers.items()}
        return {name: SeparableConvolution(layer, (rank[name],)) for name, layer in layers.items()}

    def fill(self, model: nn.Module, chosen: dict[str, Replacement], context: Context) -> dict[str, Replacement]:
        if self.aware and context.has_calibration:
            fit_pointwise(model, [each for each in chosen.values() if isinstance(each, SeparableConvolution)], context.calibration(self.batches))
        return chosen


def factorize(weight: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """W[o, i] ≈ Σ_m pointwise[o, i, m] · depthwise[i, m]: depthwise (in, m, kernel...), pointwise (out, in, m).

    >>> depthwise, pointwise = factorize(torch.einsum("oi,ik->oik", torch.rand(6, 4), torch.rand(4, 9)), 1)
    >>> depthwise.shape, pointwise.shape
    (torch.Size([4, 1, 9]), torch.Size([6, 4, 1]))
    """
    left, values, right = torch.linalg.svd(weight.transpose(0, 1).flatten(2), full_matrices=False)
    scale = values[:, :multiplier].sqrt()
    depthwise = scale[..., None] * right[:, :multiplier]
    return depthwise.unflatten(2, weight.shape[2:]), (left[..., :multiplier] * scale[:, None]).transpose(0, 1)


class PointwiseFit:
    """The 1x1 convolution P with the least ‖y - P z‖² + λ‖P - P₀‖² for a layer's outputs y, without bias, and those of its depthwise part z.

    P₀ is that of the singular vectors; λ is a small share of the mean square of z.

    Args:
        replacement: of the layer; its depthwise part remains.
    """

    DAMPING = 1e-3

    def __init__(self, replacement: SeparableConvolution):
        self.layer, made = replacement.layer, replacement.made()
        self.depthwise = made[0]
        self.start = made[1].get_parameter("weight").detach().flatten(1).double()
        outputs, inner = self.start.shape
        self.second, self.cross = self.start.new_zeros(inner, inner), self.start.new_zeros(outputs, inner)

    def add(self, inputs: Tensor, output: Tensor) -> None:
        """Count one call of the layer."""
        features = CHANNEL.product(self.depthwise, self.depthwise(inputs)).flatten(0, -2).float()
        targets = CHANNEL.product(self.layer, output).flatten(0, -2).float()
        self.second += features.T @ features
        self.cross += targets.T @ features

    def solve(self) -> Tensor | None:
        """P (out, in · m); None if no batch reached the layer, or with values that are not finite."""
        if not (self.second.isfinite().all() and self.cross.isfinite().all() and self.second.any()):
            return None
        damping = self.DAMPING * self.second.diagonal().mean() * torch.eye(len(self.second), dtype=torch.float64, device=self.second.device)
        return torch.linalg.solve(self.second + damping, (self.cross + self.start @ damping).T).T


def fit_pointwise(model: nn.Module, replacements: Iterable[SeparableConvolution], batches: Iterable[Batch]) -> None:
    """Fit the 1x1 convolution of each replacement to the outputs of its layer."""
    by_layer = {each.layer: each for each in replacements}
    fits = {layer: PointwiseFit(each) for layer, each in by_layer.items()}
    run_watched(model, list(fits), lambda layer, inputs, output, _: fits[layer].add(inputs, output), batches)
    for layer, fit in fits.items():
        by_layer[layer].pointwise = fit.solve()

"""Fake quantization: values rounded to a grid of integers, in float, with gradients.

The gradient passes a rounding straight through (STE: Bengio et al., 2013, arXiv:1308.3432), and is zero for what is clipped. A learned step size
gets the gradient of LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153); its logarithm is the parameter, so that a step
of the optimizer changes every scale by about the same share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdkit import Trait
from kdkit_quantize.arithmetic import Grid, affine_of

SHARES = torch.linspace(0.2, 1, 81)
"""Of a channel's largest weight, as ends of the grid, among which the first scale is chosen."""
MOMENTUM = 0.01
"""Of the moving average of an activation's range."""


def fake_quantize(x: Tensor, scale: Tensor, low: float, high: float, damping: float = 1.0) -> Tensor:
    """scale · round(clamp(x / scale, low, high)), with gradients.

    Args:
        x: of any shape.
        scale: broadcasts against it.
        low, high: ends of the grid, without the zero point.
        damping: factor of the gradient of `scale`; LSQ has 1 / sqrt(values of x for each scale · high).

    >>> x = torch.tensor([0.24, 0.26, 9.0], requires_grad=True)
    >>> scale = torch.tensor(0.5, requires_grad=True)
    >>> fake_quantize(x, scale, 0, 3)
    tensor([0.0000, 0.5000, 1.5000], grad_fn=<MulBackward0>)
    >>> fake_quantize(x, scale, 0, 3).sum().backward()
    >>> x.grad, scale.grad  # inside: round(x / s) - x / s, and at the upper end: high
    (tensor([1., 1., 0.]), tensor(3.))
    """
    scale = scale * damping + (scale - scale * damping).detach()
    steps = (x / scale).clamp(low, high)
    return (steps + (steps.round() - steps).detach()) * scale


class ActivationQuantizer(nn.Module):
    """Rounds activations to a grid with one scale; its zero point stays, so that 0 is exact.

    Args:
        scale, zero: from calibration.
        grid: the integers.
        learned: whether the scale is trained (LSQ); otherwise it follows a moving average of the range that training sees.

    >>> made = ActivationQuantizer(0.5, 2, Grid(4), learned=False)
    >>> made(torch.tensor([-9.0, 0.3, 1.0])), made.ends
    (tensor([-1.0000,  0.5000,  1.0000]), (-1.0, 6.5))
    """

    kdkit_traits = frozenset({Trait.FAKE_QUANT})
    log_scale: Tensor
    zero: Tensor
    range: Tensor

    def __init__(self, scale: float, zero: int, grid: Grid, learned: bool) -> None:
        super().__init__()
        self.grid, self.learned = grid, learned
        log_scale = torch.tensor(scale).log()
        self.register_parameter("log_scale", nn.Parameter(log_scale)) if learned else self.register_buffer("log_scale", log_scale)
        self.register_buffer("zero", torch.tensor(float(zero)))
        self.register_buffer("range", torch.tensor([scale * (grid.lowest - zero), scale * (grid.highest - zero)]))

    @property
    def scale(self) -> Tensor:
        """The distance between two levels."""
        return self.log_scale.exp()

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest number that the grid holds."""
        scale, zero = float(self.scale.detach()), float(self.zero)
        return scale * (self.grid.lowest - zero), scale * (self.grid.highest - zero)

    def observe(self, x: Tensor) -> None:
        """Follow the range of what training sees; a learned scale does not."""
        if self.learned:
            return
        with torch.no_grad():
            self.range.lerp_(torch.stack([x.amin(), x.amax()]).to(self.range), MOMENTUM)
            low, high = self.range.tolist()
            scale, zero = affine_of(low, high, self.grid)
            self.log_scale.fill_(torch.tensor(scale).log())
            self.zero.fill_(float(zero))

    def forward(self, x: Tensor) -> Tensor:
        damping = (max(1, x[:1].numel()) * self.grid.highest) ** -0.5
        zero = float(self.zero)
        return fake_quantize(x, self.scale, self.grid.lowest - zero, self.grid.highest - zero, damping).to(x.dtype)


class WeightQuantizer(nn.Module):
    """Rounds a weight to a symmetric grid with a scale for each output channel; a parametrization.

    A BatchNorm that is folded into the layer afterwards multiplies each row by k = γ / sqrt(variance + ε). So the folded weight is what is rounded:
    w_q = fake_quantize(w · k) / k (Jacob et al., 2018, section 3.2; here with the running variance).

    Args:
        weight: (out, ...).
        bits: 2 to 8.
        norm: the BatchNorm, if any.
        learned: whether the scales are trained (LSQ).

    >>> weight = torch.tensor([[1.0, -0.2], [4.0, 2.1]])
    >>> WeightQuantizer(weight, 8, None, learned=False)(weight)
    tensor([[ 1.0000, -0.1969],
            [ 4.0000,  2.1102]])
    """

    kdkit_traits = frozenset({Trait.FAKE_QUANT})
    log_scale: Tensor

    def __init__(self, weight: Tensor, bits: int, norm: nn.Module | None, learned: bool) -> None:
        super().__init__()
        self.grid, self._norm = Grid(bits, signed=True, narrow=True), (norm,)  # in a tuple, so that the norm stays the model's alone
        log_scale = best_scale((weight * self.folding(weight)).detach(), self.grid).log()
        self.register_parameter("log_scale", nn.Parameter(log_scale)) if learned else self.register_buffer("log_scale", log_scale)

    def folding(self, weight: Tensor) -> Tensor:
        """k, (out, 1, ...) or (); see `folding`."""
        return folding(self._norm[0], weight)

    @property
    def scale(self) -> Tensor:
        """(out,), the distance between two levels of each channel."""
        return self.log_scale.exp()

    def forward(self, weight: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # the placement of activations counts calls
            factor = self.folding(weight)
            scale = self.scale.reshape(-1, *[1] * (weight.dim() - 1))
            damping = (max(1, weight[0].numel()) * self.grid.highest) ** -0.5
            return (fake_quantize(weight * factor, scale, self.grid.lowest, self.grid.highest, damping) / factor).to(weight.dtype)

    def codes(self, weight: Tensor) -> Tensor:
        """The integers, as floats, of the folded weight."""
        scale = self.scale.reshape(-1, *[1] * (weight.dim() - 1))
        return (weight * self.folding(weight) / scale).clamp(self.grid.lowest, self.grid.highest).round()


def folding(norm: Any, weight: Tensor) -> Tensor:
    """What folding a BatchNorm multiplies each row of a weight by: γ / sqrt(variance + ε), (out, 1, ...); 1 without one, or where it gives nothing.

    >>> norm = nn.BatchNorm1d(2, eps=0.0); norm.running_var = torch.tensor([4.0, 1.0])
    >>> folding(norm, torch.zeros(2, 3))
    tensor([[0.5000],
            [1.0000]])
    """
    if norm is None or norm.running_var is None:
        return torch.ones([], device=weight.device)
    gamma = 1.0 if norm.weight is None else norm.weight
    factor = (gamma / (norm.running_var + norm.eps).sqrt()).detach()
    return torch.where(factor == 0, 1.0, factor).reshape(-1, *[1] * (weight.dim() - 1))


def best_scale(weight: Tensor, grid: Grid) -> Tensor:
    """The scale of each row, (out,), with the smallest squared error of rounding the row.

    >>> best_scale(torch.tensor([[1.0, -1.0, 0.0]]), Grid(2, signed=True, narrow=True))
    tensor([1.])
    """
    rows = weight.flatten(1)
    largest = rows.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    scales = largest * SHARES.to(rows) / grid.highest
    errors = [(fake_quantize(rows, scale[:, None], grid.lowest, grid.highest) - rows).square().sum(1) for scale in scales.unbind(1)]
    return scales.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True))[:, 0]

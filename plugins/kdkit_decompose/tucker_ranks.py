"""Ranks of a Tucker decomposition over two modes, the outputs and the inputs of a convolution.

A convolution of `kernel` elements with (out, in) channels has out·in·kernel parameters; at ranks (a, b) it has in·b + kernel·a·b + out·a.
Its squared error is at most the sum of the squared singular values that both unfoldings lose: De Lathauwer, De Moor, Vandewalle, "A
Multilinear Singular Value Decomposition", 2000.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Ranks = tuple[int, int]
"""Of the outputs and of the inputs."""


@dataclass(frozen=True)
class Spectrum:
    """What ranks of one convolution cost and lose.

    Attributes:
        outputs: its output channels.
        inputs: its input channels.
        kernel: elements of its kernel.
        lost_outputs: share of the squared weight that output rank 0, 1, ... loses, (out + 1,).
        lost_inputs: the same for the inputs, (in + 1,).
        step: ranks are multiples of it.
    """

    outputs: int
    inputs: int
    kernel: int
    lost_outputs: tuple[float, ...]
    lost_inputs: tuple[float, ...]
    step: int = 1

    @classmethod
    def of_weight(cls, weight: Tensor, step: int = 1) -> Spectrum:
        """Of a weight (out, in, kernel...), by the singular values of its unfoldings."""
        outputs, inputs = weight.shape[:2]
        lost = [_lost(torch.linalg.svdvals(weight.movedim(mode, 0).flatten(1)), weight.shape[mode]) for mode in (0, 1)]
        return cls(outputs, inputs, weight[0, 0].numel(), lost[0], lost[1], step)

    @property
    def whole(self) -> int:
        """Parameters of the convolution."""
        return self.outputs * self.inputs * self.kernel

    def price(self, ranks: Ranks) -> int:
        """Parameters of the decomposition."""
        return self.inputs * ranks[1] + self.kernel * ranks[0] * ranks[1] + self.outputs * ranks[0]

    def lost(self, ranks: Ranks) -> float:
        """Bound of the share of the squared weight that is lost."""
        return self.lost_outputs[min(ranks[0], self.outputs)] + self.lost_inputs[min(ranks[1], self.inputs)]

    def best(self, price: float) -> Ranks:
        """The ranks of that price or less that lose least; the smallest ranks if none is so cheap."""
        found = list(self._affordable(price))
        return min(found, key=lambda ranks: (self.lost(ranks), self.price(ranks))) if found else (self.step, self.step)

    def _affordable(self, price: float) -> Iterator[Ranks]:
        """For each output rank the largest input rank."""
        for first in range(self.step, self.outputs + self.step, self.step):
            second = min(int((price - self.outputs * first) // (self.inputs + self.kernel * first)), self.inputs) // self.step * self.step
            if second < self.step:
                return
            yield first, second

    def keeping(self, energy: float) -> Ranks:
        """The smallest ranks that keep this share of the squared weight, both unfoldings with an equal part of the loss."""
        return self._smallest(self.lost_outputs, energy), self._smallest(self.lost_inputs, energy)

    def _smallest(self, lost: tuple[float, ...], energy: float) -> int:
        rank = next((rank for rank in range(1, len(lost)) if lost[rank] <= (1 - energy) / 2 + 1e-12), len(lost) - 1)
        return -(-rank // self.step) * self.step


def _lost(values: Tensor, width: int) -> tuple[float, ...]:
    squares = values.double().square()
    total = float(squares.sum()) or 1.0
    tails = squares.flip(0).cumsum(0).flip(0) / total
    return (*tails.tolist(), *(0.0 for _ in range(width + 1 - len(squares))))


def by_budget(spectra: Mapping[str, Spectrum], budget: float, levels: int = 20) -> dict[str, Ranks]:
    """Ranks that share out `budget` of all parameters: a layer gets its next larger share where that gains most per parameter.

    >>> import torch
    >>> random = torch.Generator().manual_seed(0)
    >>> flat = Spectrum.of_weight(torch.randn(8, 8, 3, 3, generator=random))
    >>> sharp = Spectrum.of_weight(torch.ones(8, 8, 3, 3) + 0.01 * torch.randn(8, 8, 3, 3, generator=random))
    >>> by_budget({"flat": flat, "sharp": sharp}, 0.4)
    {'flat': (6, 6), 'sharp': (1, 1)}
    """
    left = budget * sum(spectrum.whole for spectrum in spectra.values())
    options = {name: _options(spectrum, levels) for name, spectrum in spectra.items()}
    at = dict.fromkeys(spectra, 0)
    left -= sum(each[0][0] for each in options.values())
    while True:
        gains = []
        for name, each in options.items():
            here = each[at[name]]
            gains += [((here[1] - there[1]) / (there[0] - here[0]), name, index) for index, there in enumerate(each) if index > at[name] and there[0] - here[0] <= left]
        if not gains:
            return {name: each[at[name]][2] for name, each in options.items()}
        _, name, index = max(gains)
        left -= options[name][index][0] - options[name][at[name]][0]
        at[name] = index


def _options(spectrum: Spectrum, levels: int) -> list[tuple[int, float, Ranks]]:
    """(price, loss, ranks) from the cheapest ranks to the dearest ones that cost less than the convolution, each losing less than the one before."""
    smallest = (spectrum.step, spectrum.step)
    found = [(spectrum.price(smallest), spectrum.lost(smallest), smallest)]
    for level in range(1, levels):
        ranks = spectrum.best(spectrum.whole * level / levels)
        if spectrum.price(ranks) > found[-1][0] and spectrum.lost(ranks) < found[-1][1]:
            found.append((spectrum.price(ranks), spectrum.lost(ranks), ranks))
    return found

"""CP: a convolution as one for each channel between two of 1x1."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn

from kdkit import Context, KdError, Needs, param
from kdkit_decompose.aware_stage import AwareStage
from kdkit_decompose.factors import finish_layers
from kdkit_decompose.forms import CONVOLUTIONS, INPUT, convolution_kind, reading_options
from kdkit_decompose.layer_stage import TRANSPOSED, Replacement, tell_skipped
from kdkit_decompose.tucker import whiten

DEGENERATE = 10.0
"""Components are degenerate if the sum of their squared norms is this many times the squared norm of what they add up to."""

PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2)
"""Squared norms of the factors in the objective, for a weight of norm 1: the next one is tried where the components are degenerate."""

Factors = tuple[Tensor, Tensor, Tensor]
"""Of the outputs (out, rank), of the inputs (in, rank) and of the kernel (elements, rank)."""


@dataclass
class CpConvolution(Replacement):
    """A depthwise convolution of `rank` channels between two of 1x1."""

    layer: Any
    ranks: tuple[int]
    factors: Factors | None = None

    @property
    def weights(self) -> int:
        outputs, inputs, *kernel = self.layer.weight.shape
        return self.ranks[0] * (outputs + inputs + math.prod(kernel))

    def structure(self) -> nn.Sequential:
        layer, kind, rank = self.layer, convolution_kind(self.layer), self.ranks[0]
        depthwise = kind(rank, rank, layer.kernel_size, groups=rank, bias=False, **reading_options(layer))
        return finish_layers(layer, kind(layer.in_channels, rank, 1, bias=False), depthwise, kind(rank, layer.out_channels, 1, bias=layer.bias is not None))

    def made(self) -> nn.Sequential:
        assert self.factors is not None
        made = self.structure()
        outputs, inputs, kernel = self.factors
        for part, weight in zip(made, (inputs.T, kernel.T, outputs), strict=True):
            part.get_parameter("weight").data.copy_(weight.reshape(part.get_parameter("weight").shape))
        return made


class Cp(AwareStage):
    """Replace convolutions by one for each of r channels between two of 1x1, by a canonical polyadic (CP) decomposition.

    Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", 2015 (arXiv:1412.6553). A weight
    (out, in, k, k) becomes a sum of r products of three vectors: r·(in + k² + out) parameters. It is fitted by alternating least squares
    within `seconds` for all layers. Components that grow large and cancel each other, which make training and quantization unstable (Phan et
    al., 2020, arXiv:2008.05441), are fitted again with a penalty on their norms. Where the session has data, errors are weighed by the
    second moment of the input channels. Train afterwards: `distill soft` or `tune finetune`.

    Left alone, and named in the notes: kernels of one position, layers whose components remain degenerate, layers where it would cost
    parameters or time, and what `decompose svd` leaves alone too.
    """

    id: ClassVar = "decompose.cp"
    known_as: ClassVar[tuple[str, ...]] = ("CP decomposition", "PARAFAC", "CANDECOMP", "canonical polyadic decomposition")
    needs: ClassVar = Needs(example=True, packages=("tensorly",))
    works_on: ClassVar = "convolutions"
    keep_less: ClassVar = "keep less: a smaller --ratio or --rank"

    ratio: float | None = param(
        None, "share of each layer's parameters to keep; 0.25 when nothing else chooses the ranks", gt=0, lt=1, share="kept", search=(0.1, 0.5), main=True
    )
    rank: int | None = param(None, "the number of components of every layer", ge=1)
    seconds: float = param(120.0, "time for all layers; a note names those whose fit ended before it converged", gt=0, unit="s")
    round_to: int = param(1, "ranks are multiples of it, such as 8 for fast kernels", ge=1)

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> Cp:
        if self.ratio is not None and self.rank is not None:
            raise ValueError("--ratio and --rank each choose the ranks; give one of them")
        return self

    def kinds(self) -> tuple[type, ...]:
        return (*CONVOLUTIONS, *TRANSPOSED)

    def obstacle(self, layer: Any) -> str:
        return super().obstacle(layer) or ("a kernel of one position (decompose svd splits it)" if set(layer.kernel_size) == {1} else "")

    def replacements(self, model: nn.Module, layers: Mapping[str, Any], context: Context, *, with_data: bool) -> dict[str, Replacement]:
        """Without values: a layer is fitted once it is known that it is replaced."""
        return {name: CpConvolution(layer, (self._rank(layer),)) for name, layer in layers.items()}

    def fill(self, model: nn.Module, chosen: dict[str, Replacement], context: Context) -> dict[str, Replacement]:
        seen = self.observe(model, {name: (each.layer, INPUT) for name, each in chosen.items()}, context, with_data=True)
        total = sum(each.layer.weight.numel() * each.ranks[0] for each in chosen.values())
        stopped, failed = [], {}
        for done, (name, each) in enumerate(chosen.items()):
            context.progress(done, len(chosen), f"fitting {name}")
            budget = self.seconds * each.layer.weight.numel() * each.ranks[0] / total
            observation = seen.get(name)
            weight = whiten(each.layer.weight.detach().float(), observation).flatten(2)
            (outputs, inputs, kernel), in_time = fit(weight, each.ranks[0], budget, context.seed, context.check_cancelled)
            share = degeneracy((outputs, inputs, kernel))
            if share > DEGENERATE:
                failed[name] = f"its components remain degenerate: their squared norms are {share:.0f} times the square of their sum"
            assert isinstance(each, CpConvolution)
            each.factors = outputs, inputs if observation is None else observation.roots()[1] @ inputs, kernel
            stopped += [] if in_time else [name]
        if stopped:
            context.note(f"the time ended before the fit of {', '.join(stopped)} converged; --seconds {2 * self.seconds:g} gives more")
        if len(failed) == len(chosen):
            raise KdError("decompose cp: the components of every layer remain degenerate", "another --ratio or --rank", "%kd decompose tucker is always stable")
        tell_skipped(failed, context)
        return {name: each for name, each in chosen.items() if name not in failed}

    def _rank(self, layer: Any) -> int:
        if self.rank is not None:
            return -(-self.rank // self.round_to) * self.round_to
        outputs, inputs, *kernel = layer.weight.shape
        rank = int((self.ratio or 0.25) * layer.weight.numel() / (outputs + inputs + math.prod(kernel)))
        return max(rank // self.round_to, 1) * self.round_to


def fit(weight: Tensor, rank: int, seconds: float, seed: int, tick: Callable[[], None] = lambda: None) -> tuple[Factors, bool]:
    """Factors of W[o, i, k] ≈ Σ_r outputs[o, r] · inputs[i, r] · kernel[k, r], and whether the fit ended within the time.

    Args:
        weight: (out, in, elements).
        rank: the number of components.
        seconds: the fit ends after this time, with what it has.
        seed: of the first factors.
        tick: called in each iteration; what it raises ends the fit.

    >>> random = torch.Generator().manual_seed(0)
    >>> known = [torch.randn(size, 2, generator=random) for size in (6, 5, 9)]
    >>> factors, in_time = fit(torch.einsum("or,ir,kr->oik", *known), 2, seconds=10, seed=0)
    >>> in_time, bool((torch.einsum("or,ir,kr->oik", *factors) - torch.einsum("or,ir,kr->oik", *known)).abs().max() < 0.02)
    (True, True)
    """
    import tensorly
    from tensorly.decomposition import parafac

    size = weight.norm().clamp(min=1e-30)
    ends = time.monotonic() + seconds
    in_time = True

    def stop(*_: Any) -> bool:
        nonlocal in_time
        tick()
        in_time = in_time and time.monotonic() < ends
        return not in_time

    found: Factors | None = None
    for penalty in PENALTIES:
        with tensorly.backend_context("numpy", local_threadsafe=True):
            tensor = (weight / size).double().cpu().numpy()
            _, parts = parafac(tensor, rank, n_iter_max=100, init="random", random_state=seed, tol=1e-6, l2_reg=penalty, callback=stop)
        outputs, inputs, kernel = (torch.from_numpy(part.copy()).to(weight) for part in parts)
        found = balance((outputs * size, inputs, kernel))
        if degeneracy(found) <= DEGENERATE or not in_time:
            break
    assert found is not None
    return found, in_time


def balance(factors: Factors) -> Factors:
    """The same components, with vectors of equal norms in each."""
    norms = [factor.norm(dim=0).clamp(min=1e-30) for factor in factors]
    each = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    outputs, inputs, kernel = (factor / norm * each for factor, norm in zip(factors, norms, strict=True))
    return outputs, inputs, kernel


def degeneracy(factors: Factors) -> float:
    """Sum of the squared norms of the components, over the squared norm of their sum; 1 for orthogonal components.

    >>> one = torch.tensor([[1.0], [0.0]])
    >>> degeneracy((one, one, one))
    1.0
    >>> round(degeneracy((torch.tensor([[5.0, -4.0]]), torch.ones(1, 2), torch.ones(1, 2))))    # 5 - 4: (25 + 16) / 1
    41
    """
    grams = [factor.T @ factor for factor in factors]
    products = grams[0] * grams[1] * grams[2]
    return float(products.diagonal().sum() / products.sum().clamp(min=1e-30))

"""Tucker: a convolution as a smaller one between two of 1x1."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from kdkit_decompose.moments import Observation
from kdkit_decompose.tucker_ranks import Ranks, Spectrum, by_budget
from kdkit_decompose.vbmf import estimate_rank


@dataclass
class TuckerConvolution(Replacement):
    """A convolution between two of 1x1."""

    layer: Any
    ranks: Ranks
    seen: Observation | None = None

    @property
    def weights(self) -> int:
        outputs, inputs, *kernel = self.layer.weight.shape
        return inputs * self.ranks[1] + math.prod(kernel) * self.ranks[0] * self.ranks[1] + outputs * self.ranks[0]

    def structure(self) -> nn.Sequential:
        layer, kind = self.layer, convolution_kind(self.layer)
        first, second = self.ranks
        core = kind(second, first, layer.kernel_size, bias=False, **reading_options(layer))
        return finish_layers(layer, kind(layer.in_channels, second, 1, bias=False), core, kind(first, layer.out_channels, 1, bias=layer.bias is not None))

    def made(self) -> nn.Module:
        made = self.structure()
        core, outputs, inputs = factorize(self.layer.weight.detach().float(), self.ranks, self.seen)
        for part, weight in zip(made, (inputs.T, core, outputs), strict=True):
            part.get_parameter("weight").data.copy_(weight.reshape(part.get_parameter("weight").shape))
        return made


class Tucker(AwareStage):
    """Replace convolutions by a smaller one between two of 1x1, by a Tucker decomposition over output and input channels.

    Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", 2016 (arXiv:1511.06530).
    A weight (out, in, k, k) becomes plain layers: 1x1 to b channels, k x k to a channels, 1x1 to out; in·b + k²·a·b + out·a parameters.
    The ranks (a, b) come from one of `ratio`, `energy`, `budget`, `vbmf` and `ranks`. Where the session has data, errors are weighed by
    the second moment of the input channels. Train afterwards: `distill soft` or `tune finetune`.

    Left alone, and named in the notes: kernels of one position, which `decompose svd` splits; layers where it would cost parameters or
    time, and those that `decompose svd` leaves alone too.
    """

    id: ClassVar = "decompose.tucker"
    known_as: ClassVar[tuple[str, ...]] = ("Tucker-2", "partial Tucker", "HOOI")
    needs: ClassVar = Needs(example=True, packages=("tensorly",))
    works_on: ClassVar = "convolutions"
    keep_less: ClassVar = "keep less: a smaller --ratio, --energy, --budget, --ranks or --round-to"

    ratio: float | None = param(
        None, "share of each layer's parameters to keep; 0.5 when nothing else chooses the ranks", gt=0, lt=1, share="kept", search=(0.2, 0.8), main=True
    )
    energy: float | None = param(None, "share of each layer's squared weight to keep at least", gt=0, le=1, search=(0.5, 0.99))
    budget: float | None = param(None, "share of all these layers' parameters to keep, given where it brings most", gt=0, lt=1, share="kept", search=(0.2, 0.8))
    vbmf: bool = param(False, "ranks that variational Bayesian matrix factorization finds above the noise in each weight, as in the paper")
    ranks: tuple[int, ...] = param((), "the ranks of every layer: of its outputs and of its inputs, such as 16 12")
    round_to: int = param(1, "ranks are multiples of it, such as 8 for fast kernels", ge=1)

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> Tucker:
        chosen = [f"--{name}" for name in ("ratio", "energy", "budget", "vbmf", "ranks") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} each choose the ranks; give one of them")
        if self.ranks and (len(self.ranks) != 2 or min(self.ranks) < 1):
            raise ValueError("--ranks takes two numbers of 1 or more: of the outputs and of the inputs")
        return self

    def required_inputs(self) -> Needs:
        """With `vbmf` it also needs scipy."""
        return self.needs | Needs(packages=("scipy",)) if self.vbmf else self.needs

    def kinds(self) -> tuple[type, ...]:
        return (*CONVOLUTIONS, *TRANSPOSED)

    def obstacle(self, layer: Any) -> str:
        return super().obstacle(layer) or ("a kernel of one position (decompose svd splits it)" if set(layer.kernel_size) == {1} else "")

    def replacements(self, model: nn.Module, layers: Mapping[str, Any], context: Context, *, with_data: bool) -> dict[str, Replacement]:
        seen = self.observe(model, {name: (layer, INPUT) for name, layer in layers.items()}, context, with_data=with_data)
        chosen = self._ranks(layers, seen, context)
        return {name: TuckerConvolution(layers[name], ranks, seen.get(name)) for name, ranks in chosen.items()}

    def _ranks(self, layers: Mapping[str, Any], seen: Mapping[str, Observation], context: Context) -> dict[str, Ranks]:
        if self.ranks:
            return {name: self._bounded(layer, (self.ranks[0], self.ranks[1])) for name, layer in layers.items()}
        if self.vbmf:
            return self._estimated(layers, context)
        spectra = {}
        for done, (name, layer) in enumerate(layers.items()):
            context.progress(done, len(layers), f"singular values of {name}")
            observation = seen.get(name) if self.energy or self.budget else None  # a ratio fixes the size: a forecast, which has no data, must find it
            spectra[name] = Spectrum.of_weight(whiten(layer.weight.detach().float(), observation), self.round_to)
        if self.budget is not None:
            return self._shared_out(spectra)
        if self.energy is not None:
            return {name: spectrum.keeping(self.energy) for name, spectrum in spectra.items()}
        return {name: spectrum.best((self.ratio or 0.5) * spectrum.whole) for name, spectrum in spectra.items()}

    def _bounded(self, layer: Any, ranks: Ranks) -> Ranks:
        """Multiples of `round_to`, up to the layer's channels."""
        first, second = (-(-rank // self.round_to) * self.round_to for rank in ranks)
        return min(first, layer.out_channels), min(second, layer.in_channels)

    def _estimated(self, layers: Mapping[str, Any], context: Context) -> dict[str, Ranks]:
        """The ranks of what is above the noise in both unfoldings; a layer of noise alone is left alone."""
        found = {}
        for done, (name, layer) in enumerate(layers.items()):
            context.progress(done, len(layers), f"ranks of {name}")
            weight = layer.weight.detach().float()
            found[name] = (estimate_rank(weight.flatten(1)), estimate_rank(weight.movedim(1, 0).flatten(1)))
        tell_skipped({name: "--vbmf finds nothing but noise in its weight" if 0 in ranks else "" for name, ranks in found.items()}, context)
        chosen = {name: self._bounded(layers[name], ranks) for name, ranks in found.items() if 0 not in ranks}
        if not chosen:
            raise KdError("decompose tucker: --vbmf finds nothing but noise in every layer, as in a model that was not trained", "--ratio or --energy choose the ranks")
        return chosen

    def _shared_out(self, spectra: Mapping[str, Spectrum]) -> dict[str, Ranks]:
        assert self.budget is not None
        least = sum(spectrum.price((spectrum.step, spectrum.step)) for spectrum in spectra.values()) / sum(spectrum.whole for spectrum in spectra.values())
        if least > self.budget:
            raise KdError(
                f"decompose tucker: --budget {self.budget} is too small for ranks of {self.round_to} in every layer",
                f"the least is --budget {math.ceil(least * 1000) / 1000}",
                "or choose fewer --layers",
            )
        return by_budget(spectra, self.budget)


def whiten(weight: Tensor, seen: Observation | None) -> Tensor:
    """The weight (out, in, kernel...) times C^½ over the inputs, for the second moment C of the input channels."""
    return weight if seen is None else torch.einsum("oi...,ij->oj...", weight, seen.roots()[0])


def factorize(weight: Tensor, ranks: Ranks, seen: Observation | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """W ≈ core x outputs x inputs by higher-order orthogonal iteration: core (a, b, kernel...), outputs (out, a), inputs (in, b).

    De Lathauwer, De Moor, Vandewalle, "On the Best Rank-1 and Rank-(R1, ..., RN) Approximation of Higher-Order Tensors", 2000.

    >>> weight = torch.einsum("oa,ib,abk->oik", torch.rand(6, 2), torch.rand(5, 3), torch.rand(2, 3, 4))
    >>> core, outputs, inputs = factorize(weight, (2, 3))
    >>> torch.allclose(torch.einsum("oa,ib,abk->oik", outputs, inputs, core), weight, atol=1e-5)
    True
    """
    import tensorly
    from tensorly.decomposition import partial_tucker

    with tensorly.backend_context("numpy", local_threadsafe=True):
        (core, (outputs, inputs)), _ = partial_tucker(whiten(weight, seen).double().cpu().numpy(), rank=ranks, modes=[0, 1], n_iter_max=20, init="svd")
    found = [torch.from_numpy(part.copy()).to(weight) for part in (core, outputs, inputs)]
    return found[0], found[1], found[2] if seen is None else seen.roots()[1] @ found[2]

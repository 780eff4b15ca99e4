"""Low rank: stages that make a product of two layers of one, with ranks by ratio, energy, budget or number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pydantic
from torch import nn

from kdkit import Context, KdError, param
from kdkit_decompose.aware_stage import AwareStage
from kdkit_decompose.factors import decompose, product, singular_values
from kdkit_decompose.forms import Form
from kdkit_decompose.layer_stage import Replacement
from kdkit_decompose.moments import Observation
from kdkit_decompose.ranks import break_even, by_budget, by_energy, by_ratio, price

Formed = Mapping[str, tuple[Any, Form]]
"""Layers by name, each with the form in which its weight is a matrix."""


@dataclass
class LowRank(Replacement):
    """A product of two layers."""

    layer: Any
    form: Form
    ranks: tuple[int]
    seen: Observation | None = None

    @property
    def rank(self) -> int:
        return self.ranks[0]

    @property
    def weights(self) -> int:
        return price(self.form.shape(self.layer), self.rank)

    def structure(self) -> nn.Module:
        return product(self.layer, self.form, self.rank)

    def made(self) -> nn.Module:
        return decompose(self.layer, self.form, self.rank, self.seen)

    def too_dear(self) -> str:
        even = break_even(self.form.shape(self.layer))
        return super().too_dear() and f"rank {self.rank} saves no parameters, {f'only ranks below {even} do' if even > 1 else 'and no rank does'}"


class LowRankStage(AwareStage):
    """A stage that makes products of two layers. A subclass writes `form_of`."""

    keep_less: ClassVar = "keep less: a smaller --ratio, --energy, --budget, --rank or --round-to"

    ratio: float | None = param(
        None, "share of each layer's parameters to keep; 0.5 when nothing else chooses the ranks", gt=0, lt=1, share="kept", search=(0.2, 0.8), main=True
    )
    energy: float | None = param(None, "share of each layer's squared singular values to keep", gt=0, le=1, search=(0.5, 0.99))
    budget: float | None = param(None, "share of all these layers' parameters to keep, given where it brings most", gt=0, lt=1, share="kept", search=(0.2, 0.8))
    rank: int | None = param(None, "the rank of every layer", ge=1)
    round_to: int = param(1, "ranks are multiples of it, such as 8 for fast kernels", ge=1)

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> Self:
        said = [f"--{name}" for name in ("ratio", "energy", "budget", "rank") if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(f"{' and '.join(said)} each choose the ranks; give one of them")
        return self

    def form_of(self, layer: Any) -> Form:
        """How the weight of a layer is a matrix."""
        raise NotImplementedError

    def replacements(self, model: nn.Module, layers: Mapping[str, Any], context: Context, *, with_data: bool) -> dict[str, Replacement]:
        formed = {name: (layer, self.form_of(layer)) for name, layer in layers.items()}
        seen = self.observe(model, formed, context, with_data=with_data)
        return {name: LowRank(*formed[name], (rank,), seen.get(name)) for name, rank in self._ranks(formed, seen, context).items()}

    def _ranks(self, layers: Formed, seen: Mapping[str, Observation], context: Context) -> dict[str, int]:
        shapes = {name: form.shape(layer) for name, (layer, form) in layers.items()}
        if self.rank is not None:
            return dict.fromkeys(layers, -(-self.rank // self.round_to) * self.round_to)
        if self.energy is None and self.budget is None:
            return {name: by_ratio(shape, self.ratio or 0.5, self.round_to) for name, shape in shapes.items()}
        values = {}
        for done, (name, (layer, form)) in enumerate(layers.items()):
            context.progress(done, len(layers), f"singular values of {name}")
            values[name] = singular_values(layer, form, seen.get(name))
        if self.energy is not None:
            return {name: by_energy(values[name], self.energy, self.round_to) for name in layers}
        ranks = by_budget(shapes, values, self.budget or 0.0, self.round_to)
        if not all(ranks.values()):
            least = sum(min(price(shape, self.round_to), math.prod(shape)) for shape in shapes.values()) / sum(map(math.prod, shapes.values()))
            raise KdError(
                f"{self.title}: --budget {self.budget} is too small for rank {self.round_to} in every layer",
                f"the least is --budget {math.ceil(least * 1000) / 1000}",
                "or choose fewer --layers",
            )
        return ranks

"""The weight of a technique: chosen from gradients, the published constant, or a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kdkit import Stage, param

Weight = float | Literal["auto", "published"]


@dataclass(frozen=True)
class Setting:
    """What a technique's paper, or its authors' code, sets.

    Attributes:
        weight: the published constant.
        pull: how many times as long as the label loss's the gradient of the technique's terms should be at first, at equal shares
            of both in the loss; None: the constant carries over as it is, as that of a divergence with T² does.
    """

    weight: float
    pull: float | None = None


def weighted(weight: float, pull: float | None = None, search: tuple[float, float] = (0.1, 10)) -> Any:
    """The option `weight` of a technique: its published constant, and the pull that `auto` aims at.

    >>> class Sample(Stage):
    ...     '''A stage with a weight.'''
    ...     id = "distill.sample"
    ...     weight: Weight = weighted(1000.0, pull=5.0)
    >>> setting_of(Sample), Sample().weight
    (Setting(weight=1000.0, pull=5.0), 'auto')
    """
    chosen = (
        f"so that the terms pull {pull:g} times as hard as the labels at the first steps, at --alpha 0.5; published: {weight:g}" if pull else f"the published {weight:g}"
    )
    field = param("auto", f"factor of the technique's terms; auto: {chosen}", gt=0, search=search)
    field.metadata.append(Setting(weight, pull))
    return field


def setting_of(technique: type[Stage]) -> Setting:
    """The setting that a technique declares with `weighted`; weight 1 without a pull if it declares none."""
    return next((each for each in technique.model_fields["weight"].metadata if isinstance(each, Setting)), Setting(1.0))

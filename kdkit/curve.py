"""Curves: how the terms of a loss went over the steps of a training, and the figures on validation data beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kdkit.charts import Points, line_chart, told

VALIDATION = "validation_"
"""How the names of figures on validation data begin."""


@dataclass(frozen=True, repr=False)
class Curve:
    """Figures over the steps of one training.

    Attributes:
        terms: (step, value) by the name of a term; `loss` is their weighted sum.
        validation: the same of figures on validation data, one an epoch.

    >>> Curve({"loss": ((1, 2.0), (4, 0.5))})
    curve over 4 steps: loss 2 -> 0.5
    """

    terms: Mapping[str, Points]
    validation: Mapping[str, Points] = field(default_factory=dict)

    @classmethod
    def of(cls, told: Iterable[tuple[float, Mapping[str, float]]]) -> Curve:
        """From what a training told: (steps done, figures); the learning rate is left out.

        >>> Curve.of([(1, {"loss": 2.0, "learning_rate": 0.1}), (2, {"loss": 1.0, "validation_accuracy": 0.5})]).validation
        {'validation_accuracy': ((2, 0.5),)}
        """
        found: dict[str, list[tuple[float, float]]] = {}
        for step, figures in told:
            for name, figure in figures.items():
                if name != "learning_rate":
                    found.setdefault(name, []).append((step, figure))
        lines = {name: tuple(points) for name, points in found.items()}
        terms = {name: points for name, points in lines.items() if not name.startswith(VALIDATION)}
        if len(terms) == 2 and len(set(terms.values())) == 1:
            # with a single term of weight 1 the loss says nothing new
            terms.pop("loss", None)
        return cls(terms, {name: points for name, points in lines.items() if name.startswith(VALIDATION)})

    @property
    def steps(self) -> int:
        """Up to which it goes."""
        return int(max((x for points in (*self.terms.values(), *self.validation.values()) for x, _ in points), default=0))

    def __repr__(self) -> str:
        return f"curve over {self.steps} steps: {told({**self.terms, **self.validation}) or 'nothing'}"

    def _repr_html_(self) -> str:
        """The terms, and below them, on a scale of its own, what validation gave."""
        charts = [line_chart(self.terms, "Loss")] if self.terms else []
        charts += [line_chart(self.validation, "Validation", height=150)] if self.validation else []
        return "".join(f'<div style="margin: 0.4em 0">{chart}</div>' for chart in charts)

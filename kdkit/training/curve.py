"""Curves: the terms of a loss over the steps of a training, and the figures on validation data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kdkit.display.charts import Points, describe_lines, line_chart

VALIDATION = "validation_"
"""The prefix of figures on validation data."""


@dataclass(frozen=True, repr=False)
class Curve:
    """Figures over the steps of one training.

    Attributes:
        terms: (step, value) by the name of a term; `loss` is their weighted sum.
        validation: the same for figures on validation data, one per epoch.

    >>> Curve({"loss": ((1, 2.0), (4, 0.5))})
    curve over 4 steps: loss 2 -> 0.5
    """

    terms: Mapping[str, Points]
    validation: Mapping[str, Points] = field(default_factory=dict)

    @classmethod
    def of(cls, progress: Iterable[tuple[float, Mapping[str, float]]]) -> Curve:
        """From the progress of a training: (steps done, figures), without the learning rate.

        >>> Curve.of([(1, {"loss": 2.0, "learning_rate": 0.1}), (2, {"loss": 1.0, "validation_accuracy": 0.5})]).validation
        {'validation_accuracy': ((2, 0.5),)}
        """
        found: dict[str, list[tuple[float, float]]] = {}
        for step, figures in progress:
            for name, figure in figures.items():
                if name != "learning_rate":
                    found.setdefault(name, []).append((step, figure))
        lines = {name: tuple(points) for name, points in found.items()}
        terms = {name: points for name, points in lines.items() if not name.startswith(VALIDATION)}
        if len(terms) == 2 and len(set(terms.values())) == 1:
            # a single term of weight 1 equals the loss
            terms.pop("loss", None)
        return cls(terms, {name: points for name, points in lines.items() if name.startswith(VALIDATION)})

    @property
    def steps(self) -> int:
        """The last step."""
        return int(max((x for points in (*self.terms.values(), *self.validation.values()) for x, _ in points), default=0))

    def __repr__(self) -> str:
        return f"curve over {self.steps} steps: {describe_lines({**self.terms, **self.validation}) or 'nothing'}"

    def _repr_html_(self) -> str:
        """A chart of the terms, and below it a chart of the validation figures."""
        charts = [line_chart(self.terms, "Loss")] if self.terms else []
        charts += [line_chart(self.validation, "Validation", height=150)] if self.validation else []
        return "".join(f'<div style="margin: 0.4em 0">{chart}</div>' for chart in charts)

"""Search ranges: what a hyperparameter search may try for a parameter, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdkit.errors import KdError


@dataclass(frozen=True)
class Search:
    """A range of numbers, or choices.

    Args:
        low, high: ends of the range, both included.
        log: sample the logarithm evenly, for values that span orders of magnitude.
        step: distance between the values to try; not with `log`.
        choices: the values to try, instead of a range.

    >>> Search(1e-5, 1e-1, log=True).optuna_suggestion()
    ('suggest_float', {'low': 1e-05, 'high': 0.1, 'log': True})
    >>> Search(choices=("minmax", "entropy")).optuna_suggestion()
    ('suggest_categorical', {'choices': ['minmax', 'entropy']})

    Raises:
        KdError: the range is empty, or `log`, `step` and `choices` contradict it.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if problem := self._problem():
            raise KdError(f"{self!r}: {problem}", "write Search(low, high), Search(low, high, log=True), Search(low, high, step=...) or Search(choices=(...))")

    def _problem(self) -> str:
        if self.choices:
            return "choices exclude a range" if (self.low, self.high, self.log, self.step) != (None, None, False, None) else ""
        if not (_is_number(self.low) and _is_number(self.high)):
            return "a range needs two numbers"
        if not self.low < self.high:  # type: ignore[operator]
            return "low must be less than high"
        if self.log and self.low <= 0:  # type: ignore[operator]
            return "a logarithmic range needs low > 0"
        if self.step is not None and (self.log or not 0 < self.step <= self.high - self.low):  # type: ignore[operator]
            return "step must be greater than 0 and fit into the range, and excludes log"
        return ""

    def values(self) -> tuple[Any, ...]:
        """The ends of the range, or the choices."""
        return self.choices or (self.low, self.high)

    def data(self) -> dict[str, Any]:
        """The range as plain data; `Search(**data)` makes it again."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high} | ({"log": True} if self.log else {}) | ({"step": self.step} if self.step is not None else {})

    def optuna_suggestion(self, base: type = float) -> tuple[str, dict[str, Any]]:
        """(method of an optuna trial, its arguments after the name), such as `getattr(trial, method)(name, **arguments)`.

        Args:
            base: int for a whole number, float otherwise.

        >>> Search(2, 64, log=True).optuna_suggestion(int)
        ('suggest_int', {'low': 2, 'high': 64, 'log': True})
        """
        return "suggest_categorical" if self.choices else "suggest_int" if base is int else "suggest_float", self.data()

    def __str__(self) -> str:
        if self.choices:
            return " | ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}{', log scale' if self.log else ''}{f', in steps of {self.step:g}' if self.step is not None else ''}"

    def __repr__(self) -> str:
        return f"Search({', '.join(f'{name}={value!r}' for name, value in vars(self).items() if value not in (None, False, ()))})"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Conditions on figures, such as "size<100kB": how `compare --where` chooses versions."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdkit.display.table import base_unit, base_value
from kdkit.errors import KdError
from kdkit.measurement.report import Figure

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "=": operator.eq}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CONDITION = re.compile(rf"\s*(?P<figure>[\w.-]+)\s*(?P<operator><=|>=|!=|==|=|<|>)\s*(?P<number>{_NUMBER})\s*(?P<unit>%|[\w/µ]*)\s*")
_PREFIXES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3, "µ": 1e-6, "u": 1e-6, "n": 1e-9}


@dataclass(frozen=True)
class Condition:
    """A figure compared with a number.

    Attributes:
        figure: its name.
        operator: "<", "<=", ">", ">=", "=" or "!=".
        value: in the base unit, without a prefix.
        unit: base unit that was written; empty if there was none.

    >>> Condition.read("size < 100 kB")
    Condition(figure='size', operator='<', value=100000.0, unit='B')
    >>> Condition.read("accuracy>=90%").value, Condition.read("latency<2ms").value
    (0.9, 0.002)
    """

    figure: str
    operator: str
    value: float
    unit: str = ""

    @classmethod
    def read(cls, text: str) -> Condition:
        """The condition that a text states.

        Raises:
            KdError: it states none.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise KdError(f"--where {text!r} is not a condition", 'write a figure, a comparison and a number: --where "size<100kB" "accuracy>=0.9"')
        sign, written = found["operator"].replace("==", "="), found["unit"]
        if written == "%":
            return cls(found["figure"], sign, float(found["number"]) / 100)
        for unit in ("items/s", "B", "s", "J", ""):
            prefix = written.removesuffix(unit) if unit and written.endswith(unit) else written if not unit else None
            if prefix is not None and prefix in _PREFIXES:
                return cls(found["figure"], sign, float(found["number"]) * _PREFIXES[prefix], unit)
        raise KdError(f"--where {text!r}: {written!r} is not a unit", "units: B, s, J and items/s, with k, M, G, m or µ before them; % is a hundredth")

    def holds(self, figure: Figure | None) -> bool:
        """Whether a figure meets it.

        Raises:
            KdError: it was written in another unit.
        """
        if figure is None:
            return False
        own = base_unit(figure.unit)
        if self.unit not in ("", own):
            example = f"such as {figure.name}{self.operator}{figure.value:.3g}{figure.unit}"
            raise KdError(f"--where: {figure.name} is in {own or 'plain numbers'}, not in {self.unit}", example)
        return _OPERATORS[self.operator](base_value(figure.value, figure.unit), self.value)

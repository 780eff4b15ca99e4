"""Numbers as people write them: `0.5`, `1e-3`, `50%`, `4x`, `2k`, `10m`, and with the suffixes of a unit of time or size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_NUMBER = re.compile(r"(?P<number>[+-]?(\d[\d_]*)?\.?\d+([eE][+-]?\d+)?|[+-]?\d+\.)(?P<suffix>[^\W\d_]+|%|×)")
_THOUSANDS: Mapping[str, float] = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_BYTES: Mapping[str, float] = {"b": 1, "k": 1e3, "kb": 1e3, "m": 1e6, "mb": 1e6, "g": 1e9, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS: Mapping[str, float] = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600}
SHARES = ("kept", "removed")
"""What a share of a model's size can be a share of: what is kept, or what is removed."""


def read_number(text: str, base: type, unit: str = "", share: str = "") -> int | float:
    """The number that a text stands for.

    `50%` is 0.5, or 50 where the unit is %. `4x` means 4 times smaller, for a share of a model's size alone. `k`, `m` and `g` are thousands,
    millions and billions; for a unit of time `m` is minutes. A whole number may be written as any of these, such as 1e3.

    Args:
        text: the text.
        base: int or float.
        unit: of the number that is returned, such as "s" or "B".
        share: one of `SHARES`, for a share of a model's size.

    >>> read_number("50%", float), read_number("4x", float, share="removed"), read_number("4x", float, share="kept"), read_number("2k", int)
    (0.5, 0.75, 0.25, 2000)

    Raises:
        ValueError: the text is no such number; the message says why.
    """
    try:
        return base(text)
    except ValueError:
        value = _value(text, unit, share)
    if base is float:
        return value
    if not value.is_integer():
        raise ValueError("not a whole number")
    return int(value)


def _value(text: str, unit: str, share: str) -> float:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return _finite(text)
    number, suffix = float(found["number"]), found["suffix"].lower()
    if suffix == "%":
        # 1.1 / 100 has other digits than 0.011
        return number if unit == "%" else float(f"{found['number'].replace('_', '')}e-2") if "e" not in found["number"].lower() else number / 100
    if suffix in ("x", "×"):
        return _share(number, share)
    scale = _SECONDS if unit in _SECONDS else _BYTES if unit == "B" else _THOUSANDS
    if suffix not in scale:
        raise ValueError(f"not a number: {found['suffix']!r} is none of {', '.join(scale)} and %")
    return number * scale[suffix] / (scale[unit] if unit in _SECONDS else 1)


def _finite(text: str) -> float:
    """A number without suffix, such as 1e3 for a whole number."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("not a number") from None
    if not math.isfinite(value):
        raise ValueError("not a whole number")
    return value


def _share(factor: float, share: str) -> float:
    """The share of a model's size after a reduction by a factor."""
    if not share:
        raise ValueError("a factor, not a number: only a share of a model's size can be given as one")
    if factor <= 0:
        raise ValueError("not a factor: it should be greater than 0")
    kept = 1 / factor if factor >= 1 else factor
    return kept if share == "kept" else 1 - kept

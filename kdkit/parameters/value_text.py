"""A single value as text, as on a line."""

from __future__ import annotations

from typing import Any


def write_value(value: Any) -> str:
    """The text of a value, unquoted: the shortest that reads back as the same value. A whole number has no decimal point.

    >>> write_value(8.0), write_value(0.1), write_value(1e22), write_value(True), write_value("conv")
    ('8', '0.1', '1e+22', 'true', 'conv')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)

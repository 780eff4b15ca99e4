"""Measurement: the figures of a version."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "macs": ["count_macs"],
        "measure": ["Measure"],
        "report": ["Figure", "Report"],
        "size": ["count_parameters", "size_bytes"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

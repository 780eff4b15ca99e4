"""Backends: places where a version runs and is measured, contributed through the hook `kdkit_backends`."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "base": ["Backend"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

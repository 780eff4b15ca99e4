"""Display: results as stable text and accessible HTML."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "charts": ["histogram"],
        "table": ["Cell", "Table", "number"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

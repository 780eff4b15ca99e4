"""Views: pictures and tables of a session's versions, each declared once."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "view": ["View", "Shown"],
        "registry": ["offered_views"],
        "builtin": ["Agreement", "Confusion", "Examples", "Layers", "Pareto", "Report", "Sensitivity", "Weights"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

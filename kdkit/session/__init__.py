"""Session: what a user works with."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "adoption": ["adopt_data", "adopt_model", "adopt_teacher"],
        "history": ["Version"],
        "events": ["Event"],
        "session": ["Session"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

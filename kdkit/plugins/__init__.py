"""Plugins: the hooks, and the plugins that implement them."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(__name__, {"decorators": ["offer", "stage"], "discovery": ["Plugin"], "hookspecs": ["hookimpl"]})


def __getattr__(name: str) -> Any:
    return _find(name)

"""Authoring: turn a stage of a notebook cell into a package that can be published."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(__name__, {"package": ["Package", "write"], "source": ["Source", "source_of"]})


def __getattr__(name: str) -> Any:
    return _find(name)

"""Storage: save and load without pickle."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "atomic_file": ["replace_file"],
        "codecs": ["Codec"],
        "record": ["read_record"],
        "trusted_classes": ["path_of"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

"""Lazy exports: a package lists what it exports, and imports the module of a name at the first use of the name.

Importing kdkit must stay fast, and torch alone takes a second. Deprecated names work too, see `kdkit.deprecated`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdkit.deprecated import renamed


def attach(package: str, exports: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that exports names of its modules lazily (PEP 562).

    Args:
        package: its `__name__`.
        exports: module below the package -> names in it.

    >>> getattr_, dir_, all_ = attach("kdkit.display", {"table": ["Table"]})
    >>> getattr_("Table").__name__, all_
    ('Table', ['Table'])
    """
    homes = {name: module for module, names in exports.items() for name in names}

    def find(name: str) -> Any:
        if name not in homes:
            return renamed(package, name, callers=3)
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names, list(homes)

"""Imports: which packages code imports while it runs, including those that are loaded already."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Imports = dict[str, set[str]]
"""Top-level package -> names of the modules whose import statements asked for it."""


@contextlib.contextmanager
def recorded() -> Iterator[Imports]:
    """Record the packages that import statements in the block ask for.

    >>> with recorded() as imports:
    ...     import json
    >>> "json" in imports
    True
    """
    seen: Imports = {}
    plain = builtins.__import__

    def noted(name: str, globals: Mapping[str, Any] | None = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if not level:
            seen.setdefault(name.partition(".")[0], set()).add(str((globals or {}).get("__name__", "")))
        return plain(name, globals, locals, fromlist, level)

    builtins.__import__ = noted
    try:
        yield seen
    finally:
        builtins.__import__ = plain


def at_load(module: str) -> set[str]:
    """Top-level packages that a module imports when it is loaded, without those under TYPE_CHECKING."""
    source = getattr(sys.modules.get(module), "__file__", None)
    if not source or not Path(source).is_file():
        return set()
    found: set[str] = set()
    for statement in ast.parse(Path(source).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            found.add(str(statement.module).partition(".")[0])
    return found


BESIDE = frozenset({"torch", "numpy", "pydantic", "kdkit", "__main__", "__mp_main__"})
"""Packages that every stage may use without declaring them."""


def is_foreign(package: str) -> bool:
    """Whether a package is neither part of Python nor available to every stage.

    >>> [is_foreign(name) for name in ("json", "torch", "kdkit", "peft")]
    [False, False, False, True]
    """
    return package not in sys.stdlib_module_names and package not in BESIDE and not package.startswith("kdkit_")


@contextlib.contextmanager
def hidden(package: str) -> Iterator[None]:
    """Within the block, the package looks as if it were not installed."""
    names = {name for name in sys.modules if name == package or name.startswith(f"{package}.")} | {package}
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    find = importlib.util.find_spec

    def found(name: str, *more: Any) -> Any:
        return None if name.partition(".")[0] == package else find(name, *more)

    importlib.util.find_spec = found  # type: ignore[assignment]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        importlib.util.find_spec = find
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)

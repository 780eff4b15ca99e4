"""Lifetimes: models that stay in memory after the run that made them, and the variable that holds them."""

from __future__ import annotations

import gc
import sys
import weakref
from types import FrameType, GeneratorType, ModuleType
from typing import Any

from torch import nn

from kdkit.testing.interruption import belongs

DEPTH = 7
"""How many references apart a variable and what it holds may be."""
MOST = 100_000
"""How many objects are searched."""


def references(*models: nn.Module) -> list[weakref.ref]:
    """Weak references to all modules and weights of some models."""
    return [weakref.ref(part) for model in models for part in (*model.modules(), *model.parameters())]


def held(parts: list[weakref.ref], home: str) -> str:
    """The variable of a package that still holds a part, as "module.NAME"; empty if none does.

    What other packages keep, such as caches of torch's compiler, does not count.

    Args:
        parts: of models that nobody should use any more.
        home: the package, or module, whose variables are searched.

    >>> held(references(nn.Linear(2, 2)), "kdkit")
    ''
    """
    if any(reference() is not None for reference in parts):
        gc.collect()  # modules in a circle, such as one with a hook that refers to it, go only then
    alive = [part for reference in parts if (part := reference()) is not None]
    return _holder(alive, home) if alive else ""


def _holder(alive: list[Any], home: str) -> str:
    """The variable of a package from which an object can be reached; the search goes back, from the objects to what refers to them."""
    variables = {id(vars(module)): name for name, module in list(sys.modules.items()) if isinstance(module, ModuleType) and belongs(name, home)}
    found, seen = alive, {id(part) for part in alive}
    for _ in range(DEPTH):
        own = (id(alive), id(found))
        referrers = [each for each in gc.get_referrers(*found) if id(each) not in own]
        for each in referrers:
            if id(each) in variables:
                return f"{variables[id(each)]}.{next(name for name, value in each.items() if any(value is part for part in found))}"
        found = [each for each in referrers if id(each) not in seen and _is_searched(each, home)]
        seen.update(map(id, found))
        if not found or len(seen) > MOST:
            return ""
    return ""


def _is_searched(value: Any, home: str) -> bool:
    """Whether an object may hold others on behalf of a package: no module, variables of a module, or class of another package."""
    if isinstance(value, type):
        return belongs(value.__module__, home)
    return not isinstance(value, (ModuleType, FrameType, GeneratorType)) and not (isinstance(value, dict) and "__builtins__" in value)

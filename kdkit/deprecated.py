"""Deprecated names: what kdkit 0.1.0 called by another name. They work for one release, with a DeprecationWarning; this module goes with them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from kdkit.renaming import warn_renamed

NAMES: Mapping[str, Mapping[str, str]] = {
    "kdkit.data": {
        "Items": "kdkit.data.MapDataset",
        "Joined": "kdkit.data.PairedData",
        "Listed": "kdkit.data.BatchList",
        "Rows": "kdkit.data.TensorRows",
        "adopt_data": "kdkit.adopt_data",
        "try_call": "kdkit.models.try_call",
    },
    "kdkit.tasks": {
        "guess_task": "kdkit.tasks.infer_task",
        "tasks": "kdkit.session.task_lookup.tasks",
        "tensor_of": "kdkit.tasks.main_tensor",
        "wide": "kdkit.tasks.at_least_float32",
    },
    "kdkit.models": {
        "Served": "kdkit.models.FunctionModel",
        "match": "kdkit.models.select_layers",
        "usage": "kdkit.models.trace_layer_usage",
    },
    "kdkit.testing.zoo": {"Guest": "kdkit.testing.zoo.CustomModel"},
}
"""Module -> old name -> where it is now."""

MODULES: Mapping[str, tuple[str, ...]] = {
    "kdkit.charts": ("kdkit.display.charts",),
    "kdkit.context": ("kdkit",),
    "kdkit.contract": ("kdkit",),
    "kdkit.counting": ("kdkit.measurement",),
    "kdkit.hookspecs": ("kdkit",),
    "kdkit.measure": ("kdkit", "kdkit.measurement"),
    "kdkit.patterns": ("kdkit.models",),
    "kdkit.pipeline": ("kdkit",),
    "kdkit.seeding": ("kdkit.guards",),
    "kdkit.table": ("kdkit.display",),
    "kdkit.tasks.contract": ("kdkit.tasks",),
    "kdkit.usage": ("kdkit.models",),
}
"""Old module -> the public faces that export its names now."""


def renamed(module: str, name: str, callers: int = 2) -> Any:
    """What a module exports under a deprecated name.

    Args:
        callers: calls between the code that uses the name and this function, itself included; for the text of the warning.

    Raises:
        AttributeError: the module never had the name.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     renamed("kdkit.data", "Rows").__name__, str(caught[0].message)
    ('TensorRows', 'kdkit.data.Rows is now called kdkit.data.TensorRows; the old name will be removed in the next release')
    """
    if name not in NAMES.get(module, ()):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new = NAMES[module][name]
    warn_renamed(f"{module}.{name}", new, callers + 2)
    home, _, attribute = new.rpartition(".")
    return getattr(importlib.import_module(home), attribute)


class RenamedModule(ModuleType):
    """A module of kdkit 0.1.0: it imports nothing, and finds each name in the public faces that export it now."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for face in MODULES[self.__name__]:
                module = importlib.import_module(face)
                if name in module.__all__:
                    warn_renamed(f"{self.__name__}.{name}", f"{face}.{name}")
                    return getattr(module, name)
                if name in NAMES.get(face, ()):
                    return renamed(face, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def register_renamed_modules() -> None:
    """Make `import kdkit.contract` and its like work; costs nothing until a name is used."""
    for name in MODULES:
        module = sys.modules.setdefault(name, RenamedModule(name))
        home, _, last = name.rpartition(".")
        if home == "kdkit":  # so that `import kdkit.contract` is followed by `kdkit.contract.Stage`
            setattr(sys.modules[home], last, module)

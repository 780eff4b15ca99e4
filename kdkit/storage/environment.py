"""The package versions that a folder was saved with."""

from __future__ import annotations

import functools
import importlib.util
import platform
from collections.abc import Iterator, Mapping

from torch import nn

from kdkit.storage.trusted_classes import path_of, top_package


def environment(model: nn.Module) -> dict[str, str]:
    """Versions of Python, of the packages that define the model's classes, and of kdkit, torch and safetensors.

    >>> sorted(environment(nn.Linear(1, 1)))
    ['kdkit', 'python', 'safetensors', 'torch']
    """
    kinds = {type(item) for items in (model.modules(), model.parameters(), model.buffers()) for item in items}
    packages = {top_package(path_of(kind)) for kind in kinds} | {"kdkit", "torch", "safetensors"}
    return {"python": platform.python_version()} | {name: version for name in sorted(packages) if (version := installed_version(name))}


@functools.cache
def installed_version(package: str) -> str:
    """The version of an installed distribution; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def changed_versions(saved: Mapping[str, str]) -> Iterator[str]:
    """A line for each package whose installed version differs from the saved one."""
    for name, version in saved.items():
        here = platform.python_version() if name == "python" else installed_version(name)
        if here != version:
            yield f"it was saved with {name} {version}; installed is {here or 'none'}"

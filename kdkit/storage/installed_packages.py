"""Import what is installed, and nothing else: no module of the working directory, and none beside or inside a saved folder."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname


def import_installed(module: str) -> ModuleType | None:
    """Import a module of an installed package; None if the package is not installed, or the module can't be imported.

    A package that is imported already is the one that the user chose. Any other one must be in a folder of installed packages.

    >>> import_installed("torch.nn.modules.linear").__name__
    'torch.nn.modules.linear'
    """
    package = module.partition(".")[0]
    with _without_working_directory():
        if not _is_package(sys.modules.get(package)) and not _is_installed(package):
            return None
        try:
            return importlib.import_module(module)
        except (ImportError, AttributeError, ValueError):
            return None


def _is_package(module: ModuleType | None) -> bool:
    """Whether a module has a file of its own: a folder without `__init__.py` becomes a package by its name alone."""
    return module is not None and getattr(module, "__file__", None) is not None


def _is_installed(package: str) -> bool:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:
        return False
    origin = Path(spec.origin)
    home = origin.parent.parent if spec.submodule_search_locations is not None else origin.parent
    return _resolved(home) in _install_folders()


@contextlib.contextmanager
def _without_working_directory() -> Iterator[None]:
    """Modules of the working directory are not found, unless packages are installed there, as in a checkout."""
    before = sys.path
    here = _resolved(Path.cwd())
    sys.path = [place for place in before if _resolved(Path(place)) != here or here in _install_folders()]
    try:
        yield
    finally:
        sys.path = before


@functools.cache
def _install_folders() -> frozenset[str]:
    """The folders of installed packages, and those that editable installs add to them."""
    sites = {*site.getsitepackages(), site.getusersitepackages(), *(sysconfig.get_path(name) for name in ("purelib", "platlib"))}
    folders = {Path(place) for place in sites if os.path.isdir(place)}
    folders |= {root / part for root in _editable_roots(folders) for part in ("", "src")}
    added = {place / line.strip() for place in folders for file in place.glob("*.pth") for line in _lines(file) if line.strip() and not line.startswith(("#", "import"))}
    return frozenset(_resolved(place) for place in folders | {place for place in added if place.is_dir()})


def _editable_roots(folders: Iterable[Path]) -> Iterator[Path]:
    """The sources of packages that are installed in editable form."""
    for distribution in importlib.metadata.distributions(path=[str(folder) for folder in folders]):
        facts = json.loads(distribution.read_text("direct_url.json") or "{}")
        if facts.get("dir_info", {}).get("editable"):
            yield Path(url2pathname(urlsplit(facts["url"]).path))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _resolved(place: Path) -> str:
    return os.path.realpath(place)

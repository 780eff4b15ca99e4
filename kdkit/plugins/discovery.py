"""Discovery: finding plugins through entry points, and checking what they contribute."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdkit.errors import KdError

GROUP = "kdkit"
"""The entry-point group; a plugin's pyproject.toml has `[project.entry-points.kdkit]`."""


@dataclass(frozen=True)
class Plugin:
    """One entry point, or what the cells of this notebook offer.

    Attributes:
        name: of the entry point.
        distribution, version: of the package that declares it.
        status: "ok", "blocked" or "broken".
        reason: why it is not ok.
        offers: ids of its stages and names of its hooks.
    """

    name: str
    distribution: str = ""
    version: str = ""
    status: str = "ok"
    reason: str = ""
    offers: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Its name in messages: "kdkit-extra 0.2 (mine)"."""
        return f"{self.distribution} {self.version} ({self.name})".strip() if self.distribution else self.name


def unavailable_hints(plugins: Iterable[Plugin]) -> list[str]:
    """Hints that name the blocked and broken plugins, which may offer what is missing.

    >>> unavailable_hints([Plugin("mine", status="blocked", reason="blocked in this session")])
    ['plugin mine may offer more, but is blocked: blocked in this session  (%kd plugins)']
    """
    down: dict[tuple[str, str], list[str]] = {}
    for plugin in plugins:
        if plugin.status != "ok":
            down.setdefault((plugin.status, plugin.reason), []).append(plugin.source)
    return [
        f"plugin{'s'[: len(names) - 1]} {', '.join(names)} may offer more, but {'is' if len(names) == 1 else 'are'} {status}: {reason}  (%kd plugins)"
        for (status, reason), names in down.items()
    ]


def offered_twice(what: str, sources: Iterable[str]) -> KdError:
    """The error for a conflict between plugins.

    >>> print(offered_twice("task 'depth'", ["one", "other"]))
    task 'depth' is offered by one and by other
      hint: %kd plugins block NAME takes one of them out
    """
    return KdError(f"{what} is offered by {' and by '.join(sources)}", "%kd plugins block NAME takes one of them out")


def published(module: str) -> bool:
    """Whether a module belongs to the package of an installed plugin, whose hooks offer what it contains.

    >>> published("kdkit_prune.channels"), published("__main__")
    (True, False)
    """
    package = module.partition(".")[0]
    return package != "__main__" and any(entry.module.partition(".")[0] == package for entry in importlib.metadata.entry_points(group=GROUP))


def distribution_of(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """The name and version of the package that declares an entry point."""
    return (entry.dist.name, entry.dist.version) if entry.dist else ("", "")


def instantiate(plugin: Any) -> Any:
    """The plugin itself, or an instance if it is a class.

    Raises:
        KdError: the class needs arguments.
    """
    if not inspect.isclass(plugin):
        return plugin
    try:
        return plugin()
    except TypeError as error:
        raise KdError(f"it is the class {plugin.__name__}, and making an instance failed: {error}", "name a module or an object in the entry point") from error


def hooks_of(plugin: Any) -> list[str]:
    """The names of the hooks that a plugin implements."""
    return [name for name in dir(plugin) if hasattr(inspect.getattr_static(plugin, name), f"{GROUP}_impl")]

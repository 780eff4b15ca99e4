"""Care for plugins from a notebook: list them, try them, watch them, and begin a new one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdkit.contract import Stage
from kdkit.errors import KdError, did_you_mean
from kdkit.notebook.page import Page, Source
from kdkit.plugins import manager
from kdkit.table import Table, volatile
from kdkit.tracing import Trace

if TYPE_CHECKING:
    from kdkit.notebook.desk import Desk
    from kdkit.notebook.verbs import NewPlugin


def listing() -> Table:
    """The plugins, the broken and blocked ones with the reason, and those that were installed since the last look."""
    manager().discover()
    rows = [
        [each.name, each.distribution, each.version, each.status + (f": {each.reason}" if each.reason else ""), ", ".join(each.offers)] for each in manager().plugins()
    ]
    return Table(["plugin", "distribution", "version", "status", "offers"], rows)


def check(name: str, models: Sequence[str]) -> Any:
    """The report on all stages of a plugin, or on one stage by its id."""
    from kdkit.testing import check_plugin, check_stage

    if "." in name and not any(name in (plugin.name, plugin.distribution) for plugin in manager().plugins()):
        return check_stage(manager().stage(name), models=models or None)
    return check_plugin(name, models=models or None)


def trace(switch: str, live: bool) -> Any:
    """Begin to watch the hooks, or end it and tell what was seen.

    Raises:
        KdError: it is neither on nor off that was said, or nothing is being watched.
    """
    if switch not in ("on", "off"):
        raise KdError(f"plugins trace {switch!r}: it can be on or off", did_you_mean(switch, ("on", "off")), "%kd plugins trace on")
    watching = manager().tracing
    if switch == "off" and watching is None:
        raise KdError("plugins trace off: nothing is being traced", "%kd plugins trace on")
    if watching is not None:
        watching.end(manager())
        manager().tracing = None
    if switch == "off" and watching is not None:
        return watching.table()
    manager().tracing = begun = Trace(print if live else None)
    begun.begin(manager())
    return Page("The hooks are being traced.", Source("%kd plugins trace off"))


def new_plugin(said: NewPlugin, desk: Desk) -> Page:
    """Write the package that was asked for, and tell what to do with it.

    Raises:
        KdError: the name can't be, something of that name is there, or the stage can't be taken along.
    """
    from kdkit.authoring import Package, source_of, write

    source = source_of(_stage(said.from_, desk)) if said.from_ else None
    package = Package(said.name, source, said.licence, said.author)
    target = write(package, Path(said.folder))
    shown = volatile(str(target)) if target.is_absolute() else f"./{target}"
    files = Table(["file", "lines"], [[path, len(text.splitlines())] for path, text in package.files().items()], f"{shown} was written")
    return Page(files, Source(f"%pip install {shown}\n%kd plugins\n%kd plugins check {package.entry}"))


def _stage(words: Sequence[str], desk: Desk) -> type[Stage]:
    """The stage that `--from` names.

    Raises:
        KdError: there is none, or it came with a plugin and has a package already.
    """
    if words[0].startswith("@"):
        version = desk.session.version(words[0])
        if version.stage is None:
            raise KdError(f"{version.name} was made by no stage", "name the stage: --from prune mine")
        found = type(version.stage)
    else:
        named = ".".join(words)
        alone = [id for id in manager().stages() if id.partition(".")[2] == named]
        found = manager().stage(alone[0] if len(alone) == 1 else named)
    plugin = manager().provider(found.id)
    if plugin.name != "notebook":
        raise KdError(
            f"{found.id.replace('.', ' ', 1)} comes with {plugin.source}; only a stage of this notebook can become a package",
            "write yours with @kdkit.stage(...) in a cell",
        )
    return found

"""Verbs for plugins: list, block, check and trace them, and create a new one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kdkit import authoring
from kdkit.display.page import Page, Source
from kdkit.display.table import Table, volatile
from kdkit.errors import KdError, did_you_mean
from kdkit.notebook.verb import Verb
from kdkit.parameters.settings import param
from kdkit.plugins.manager import manager
from kdkit.plugins.tracing import Trace
from kdkit.stages.stage import Stage

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


def listing() -> Table:
    """A table of the plugins, with the reason why one is broken or blocked; finds newly installed ones too."""
    manager().discover()
    rows = [
        [each.name, each.distribution, each.version, each.status + (f": {each.reason}" if each.reason else ""), ", ".join(each.offers)] for each in manager().plugins()
    ]
    return Table(["plugin", "distribution", "version", "status", "offers"], rows)


def check(name: str, models: Sequence[str]) -> Any:
    """The conformance report on all stages of a plugin, or on one stage by its id."""
    from kdkit.testing import check_plugin, check_stage

    if "." in name and not any(name in (plugin.name, plugin.distribution) for plugin in manager().plugins()):
        return check_stage(manager().stage(name), models=models or None)
    return check_plugin(name, models=models or None)


def trace(switch: str, live: bool) -> Any:
    """Start to trace the hooks, or stop and return the recorded calls.

    Raises:
        KdError: the switch is neither on nor off, or nothing is being traced.
    """
    if switch not in ("on", "off"):
        raise KdError(f"plugins trace {switch!r}: use on or off", did_you_mean(switch, ("on", "off")), "%kd plugins trace on")
    current = manager().tracing
    if switch == "off" and current is None:
        raise KdError("plugins trace off: nothing is being traced", "%kd plugins trace on")
    if current is not None:
        current.end(manager())
        manager().tracing = None
    if switch == "off" and current is not None:
        return current.table()
    manager().tracing = begun = Trace(print if live else None)
    begun.begin(manager())
    return Page("The hooks are being traced.", Source("%kd plugins trace off"))


def new_plugin(options: NewPlugin, workspace: Workspace) -> Page:
    """Write the package, and show what to do next.

    Raises:
        KdError: the name is not valid or taken, or the stage can't be packaged.
    """
    source = authoring.source_of(_stage(options.from_, workspace)) if options.from_ else None
    package = authoring.Package(options.name, source, options.licence, options.author)
    target = authoring.write(package, Path(options.folder))
    shown = volatile(str(target)) if target.is_absolute() else f"./{target}"
    files = Table(["file", "lines"], [[path, len(text.splitlines())] for path, text in package.files().items()], f"{shown} was written")
    return Page(files, Source(f"%pip install {shown}\n%kd plugins\n%kd plugins check {package.entry}"))


def _stage(words: Sequence[str], workspace: Workspace) -> type[Stage]:
    """The stage that `--from` names.

    Raises:
        KdError: there is none, or it is part of a plugin already.
    """
    if words[0].startswith("@"):
        version = workspace.session.version(words[0])
        if version.stage is None:
            raise KdError(f"no stage made {version.name}", "name the stage: --from prune mine")
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


class Plugins(Verb):
    """List plugins with source, status and contents; block or unblock a plugin, check its conformance, or trace the hooks."""

    positional: ClassVar = ("action", "name")
    example_line: ClassVar = "%kd plugins check kdkit-extra"

    action: Literal["list", "block", "unblock", "check", "trace"] = param(
        "list", "block disables a plugin until the kernel restarts, check tests its stages, trace records which plugin answers each hook"
    )
    name: tuple[str, ...] = param((), "a plugin or its distribution; for check also a technique, for trace on or off", names="plugin")
    models: tuple[str, ...] = param((), "for check: models of the zoo, or your own as module:name; default: the whole zoo")
    live: bool = param(False, "for trace: print each call at once")

    def run(self, workspace: Workspace) -> Any:
        if self.action == "list":
            return listing()
        name = ".".join(self.name)
        if not name:
            raise KdError(f"plugins {self.action}: which one?", f"%kd plugins {self.action} {'on' if self.action == 'trace' else 'NAME'}", "%kd plugins lists them")
        if self.action == "check":
            return check(name, self.models)
        if self.action == "trace":
            return trace(name, self.live)
        {"block": manager().block, "unblock": manager().unblock}[self.action](name)
        return listing()


class NewPlugin(Verb):
    """Create a plugin package that can be installed, tested and published, from a stage of a cell or from a template."""

    positional: ClassVar = ("name",)
    example_line: ClassVar = "%kd new-plugin kdkit-tidy --from prune tidy"

    name: str = param(..., "name of the distribution: lower-case words with dashes")
    from_: tuple[str, ...] = param((), "the stage to package: family and technique, or the @version that it made; default: a template", names="technique")
    licence: Literal["MIT", "BSD-3-Clause", "Apache-2.0", "none"] = param("MIT", "licence of the package")
    author: str = param("", "author that the licence names")
    folder: str = param(".", "parent of the new folder", names="path")

    def run(self, workspace: Workspace) -> Any:
        return new_plugin(self, workspace)

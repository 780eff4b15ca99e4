"""The plugin manager: plugins are loaded one by one in isolation, blocked and unblocked, and called.

A plugin that fails is listed with the reason and named where something is missing; it never takes kdkit down.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, describe_exception, did_you_mean
from kdkit.guards.garbage import garbage_kept
from kdkit.guards.interrupts import package_of, raise_interrupt
from kdkit.plugins import hookspecs
from kdkit.plugins.discovery import GROUP, Plugin, distribution_of, hooks_of, instantiate, offered_twice, unavailable_hints
from kdkit.plugins.hook_caller import OWN_PROTOCOL, HookCaller, home_of
from kdkit.plugins.hook_results import CONTRIBUTED, checked_records
from kdkit.plugins.notebook_plugin import Notebook
from kdkit.plugins.protocol import Protocol
from kdkit.plugins.stage_registry import StageRegistry
from kdkit.renaming import warn_renamed
from kdkit.stages.stage import API, Stage
from kdkit.stages.validation import validate_api, validate_stage

if TYPE_CHECKING:
    from pluggy import HookImpl

    from kdkit.plugins.tracing import Trace

NOUNS = {"kdkit_tasks": "task", "kdkit_measures": "measure", "kdkit_backends": "backend", "kdkit_codecs": "codec", "kdkit_trackers": "tracker"}
"""Contributing hook -> what its records are, for messages."""


class Manager(HookCaller):
    """Loads plugins, isolates the broken ones, and calls hooks."""

    def __init__(self) -> None:
        super().__init__(GROUP)
        self.add_hookspecs(hookspecs)
        self._plugins: dict[str, Plugin] = {}
        self._entries: dict[str, importlib.metadata.EntryPoint] = {}
        self._notebook = Notebook()
        self._cells: dict[str, ModuleType] = {}
        self._asked: dict[tuple[str, str], Any] = {}
        self._registry = StageRegistry(lambda: self.contributions("kdkit_stages"), self._plugins, self._notebook)
        self.tracing: Trace | None = None
        self.register(Protocol(), OWN_PROTOCOL)
        self.register(self._notebook, "notebook")

    # loading

    def discover(self) -> None:
        """Load each new entry point of the group in isolation; `KDKIT_PLUGINS` (names, separated by commas) selects some."""
        selected = os.environ.get("KDKIT_PLUGINS")
        wanted = None if selected is None else {name.strip() for name in selected.split(",")} - {""}
        known = {(distribution_of(entry)[0], entry.name) for entry in self._entries.values()}
        importlib.invalidate_caches()
        for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: (distribution_of(entry)[0], entry.name)):
            distribution, version = distribution_of(entry)
            if (distribution, entry.name) in known:
                continue
            key = entry.name if entry.name not in self._entries else f"{entry.name}@{distribution}"
            if wanted is None or wanted & {entry.name, distribution}:
                self._plugins[key] = Plugin(key, distribution, version, "broken", "its loading was interrupted")
                self._load(key, entry)
            else:
                self._plugins[key] = Plugin(key, distribution, version, "blocked", "not named in KDKIT_PLUGINS")
            self._entries[key] = entry  # last, so that a discovery that was interrupted tries this one again
        for name in sorted((wanted or set()) - {word for entry in self._entries.values() for word in (entry.name, distribution_of(entry)[0])}):
            self._plugins[name] = Plugin(name, status="broken", reason="KDKIT_PLUGINS names it, and no such plugin is installed")

    def _load(self, key: str, entry: importlib.metadata.EntryPoint) -> None:
        if self.has_plugin(key):
            self.unregister(name=key)  # an interrupt came after it was registered
        home, handled = package_of(entry.module), sys.exception()
        try:
            self.guarded(f"plugin {self.source(key)}", lambda: self.add(entry.load(), key), home)
        except BaseException as error:  # a plugin may raise anything, SystemExit too
            raise_interrupt(error, home, handled)
            self._mark_broken(key, error)
        else:
            for id in self._plugins[key].offers:
                self._notebook.stages.pop(id, None)

    def add(self, plugin: Any, name: str) -> None:
        """Register one plugin: a module, an object, or a class, which is instantiated.

        A plugin may state the contract that it was written for, `kdkit_api = 1`; kdkit assumes its own otherwise.

        Raises:
            KdError: it was written for another contract, implements a hook that does not exist, or offers an invalid stage.
            pluggy.PluginValidationError: a hook takes an argument that it does not have.
        """
        plugin = instantiate(plugin)
        for fault in validate_api(getattr(plugin, "kdkit_api", API)):
            raise KdError(fault)
        for hook in hooks_of(plugin):
            self._check_hook(hook, getattr(getattr(plugin, hook), f"{GROUP}_impl"))
        self.register(plugin, name)
        try:
            offered = checked_records("kdkit_stages", plugin.kdkit_stages()) if "kdkit_stages" in hooks_of(plugin) else []
            if wrong := [fault for stage in offered for fault in validate_stage(stage)]:
                raise KdError("; ".join(wrong))
        except BaseException:
            self.unregister(name=name)
            raise
        hooks = tuple(hook for hook in hooks_of(plugin) if hook != "kdkit_stages")
        self._set(name, status="ok", reason="", offers=(*(stage.id for stage in offered), *hooks))

    def _check_hook(self, hook: str, options: Mapping[str, Any]) -> None:
        if not hasattr(self.hook, hook):
            known = vars(self.hook)
            raise KdError(f"it implements a hook {hook!r} that kdkit does not have", did_you_mean(hook, known), f"hooks: {', '.join(sorted(known))}")
        if options["wrapper"] and not getattr(self.hook, hook).spec.opts["firstresult"]:
            raise KdError(f"it wraps {hook}, which kdkit calls for each plugin separately", "implement it without wrapper=True")

    def _set(self, name: str, **facts: Any) -> None:
        """Update a plugin's record; its stages may have changed with it."""
        self._plugins[name] = replace(self._plugins.get(name, Plugin(name)), **facts)
        self.forget()

    def _mark_broken(self, name: str, error: BaseException) -> None:
        """Mark a plugin as broken by the error in progress; with `KDKIT_STRICT_PLUGINS=1`, for authors, raise the error instead."""
        if os.environ.get("KDKIT_STRICT_PLUGINS") == "1":
            if isinstance(error, KdError):
                error.inside(f"plugin {self.source(name)}")
            raise error
        self._set(name, status="broken", reason=error.message if isinstance(error, KdError) else describe_exception(error))

    # listing, blocking

    def plugins(self) -> list[Plugin]:
        """All plugins, including broken and blocked ones; each hook that contributes something is called once before."""
        for hook in CONTRIBUTED:
            for implementation in getattr(self.hook, hook).get_hookimpls():
                if self._asked.get((hook, implementation.plugin_name)) is not implementation.plugin:
                    list(self._contributed(hook, implementation))
        own = [Plugin("notebook", offers=tuple(self._notebook.stages))] if self._notebook.stages else []
        return [*self._plugins.values(), *own]

    @property
    def problems(self) -> list[Plugin]:
        """The broken plugins."""
        return [plugin for plugin in self.plugins() if plugin.status == "broken"]

    def block(self, name: str) -> list[Plugin]:
        """Remove a plugin, by its own or its distribution's name, until `unblock` or the end of the session."""
        for plugin in self._find(name):
            if self.has_plugin(plugin.name):
                self.unregister(name=plugin.name)
            self._set(plugin.name, status="blocked", reason="blocked in this session")
        return self._find(name)

    def unblock(self, name: str) -> list[Plugin]:  # type: ignore[override]  # pluggy's own lifts a ban on a name, which kdkit never uses
        """Load a blocked plugin again."""
        for plugin in self._find(name):
            if plugin.status != "ok" and plugin.name in self._entries:
                self._load(plugin.name, self._entries[plugin.name])
            elif plugin.status != "ok" and plugin.name in self._cells:
                self.add(self._cells[plugin.name], plugin.name)
        return self._find(name)

    def _find(self, name: str) -> list[Plugin]:
        found = [plugin for plugin in self._plugins.values() if name in (plugin.name, plugin.distribution)]
        if not found:
            known = {word for plugin in self._plugins.values() for word in (plugin.name, plugin.distribution) if word}
            raise KdError(f"no plugin {name!r}", did_you_mean(name, known), "%kd plugins lists them")
        return found

    def unavailable_hints(self) -> list[str]:
        """Hints that name the blocked and broken plugins, which may offer what is missing."""
        return unavailable_hints(self._plugins.values())

    # hooks from cells

    def register_hook(self, function: Callable) -> None:
        """Implement a hook with a function of its name; it replaces the one of an earlier cell.

        Raises:
            KdError: kdkit has no hook of that name.
            pluggy.PluginValidationError: the function takes an argument that the hook does not have.
        """
        name = f"notebook:{function.__name__}"
        plugin, before = ModuleType(name), self._cells.get(name)
        setattr(plugin, function.__name__, function)
        if self.has_plugin(name):
            self.unregister(name=name)
        try:
            self.add(plugin, name)
        except BaseException:
            if before is not None:
                self.add(before, name)
            raise
        self._cells[name] = plugin

    def unregister_hook(self, function: Callable | str) -> None:
        """Remove a cell's implementation of a hook, by the function or the hook's name."""
        name = f"notebook:{getattr(function, '__name__', function)}"
        if self._cells.pop(name, None) is not None:
            self._plugins.pop(name)
            if self.has_plugin(name):
                self.unregister(name=name)
            self.forget()

    # stages: see StageRegistry

    def stages(self) -> dict[str, type[Stage]]:
        """Every stage by id, without those that two plugins offer."""
        return self._registry.stages()

    def stage(self, id: str) -> type[Stage]:
        """The stage of that id.

        Raises:
            KdError: there is none, or two plugins offer it; the message names them.
        """
        return self._registry.find(id)

    def known_as(self, name: str) -> list[str]:
        """The ids of the techniques that have another name, such as "RKD"; case, spaces and dashes don't count."""
        return self._registry.known_as(name)

    def provider(self, id: str) -> Plugin:
        """The plugin that offers a stage; kdkit itself for a group of stages."""
        return self._registry.provider(id)

    def offer(self, stage: type[Stage]) -> None:
        """Offer a stage from a cell; it replaces a stage of the same id from an earlier cell.

        Raises:
            KdError: the stage is invalid, or an installed plugin offers that id.
        """
        self._registry.offer(stage)

    def forget(self) -> None:
        """Ask the plugins for their stages again when one is needed."""
        self._registry.forget()

    def source(self, plugin: str) -> str:
        return self._registry.source(plugin)

    def is_own(self, package: str) -> bool:
        own = [entry for key, entry in self._entries.items() if self._plugins[key].distribution == "kdkit"]
        return super().is_own(package) or package in {package_of(entry.module) for entry in own}

    # what plugins contribute

    def contributions(self, hook: str) -> Iterator[tuple[str, Any]]:
        """(name of the plugin, record) for each record that a contributing hook returns; a plugin that raises is marked as broken."""
        for implementation in list(getattr(self.hook, hook).get_hookimpls()):
            yield from ((implementation.plugin_name, record) for record in self._contributed(hook, implementation))

    def _contributed(self, hook: str, implementation: HookImpl) -> list[Any]:
        """The records that one plugin contributes."""
        self._asked[hook, implementation.plugin_name] = implementation.plugin
        who, handled, home = implementation.plugin_name, sys.exception(), home_of(implementation)
        try:
            return self.guarded(f"plugin {self.source(who)}", lambda: checked_records(hook, self._call(hook, implementation)), home)
        except BaseException as error:
            raise_interrupt(error, home, handled)
            self._mark_broken(who, error)
            return []

    def named(self, hook: str, name: str, noun: str = "") -> Any:
        """The record called `name` among those that a contributing hook returns.

        Raises:
            KdError: there is none, or there are two.
        """
        return self.offered(hook, name, noun)[1]

    def offered(self, hook: str, name: str, noun: str = "") -> tuple[str, Any]:
        """(name of the plugin, record) of the record called `name` among those that a contributing hook returns.

        Raises:
            KdError: there is none, or there are two.
        """
        noun = noun or NOUNS[hook]
        found = list(self.contributions(hook))
        same = [(plugin, record) for plugin, record in found if record.name == name]
        if len(same) > 1:
            raise offered_twice(f"{noun} {name!r}", (self.source(plugin) for plugin, _ in same))
        if not same:
            known = sorted(record.name for _, record in found)
            hints = f"there are: {', '.join(known)}" if known else f"no plugin brings a {noun}"
            raise KdError(f"no {noun} {name!r}", did_you_mean(name, known), hints, *self.unavailable_hints())
        return same[0]

    # old names, for this release

    def allow(self, name: str) -> list[Plugin]:
        """The old name of `unblock`."""
        warn_renamed("Manager.allow", "unblock")
        return self.unblock(name)

    def answer(self, function: Callable) -> None:
        """The old name of `register_hook`."""
        warn_renamed("Manager.answer", "register_hook")
        self.register_hook(function)


_manager: Manager | None = None
_incomplete: Manager | None = None
"""The manager that the discovery in progress fills."""
_discovering = threading.RLock()


def manager() -> Manager:
    """The one manager of this process, which discovers plugins at its first use.

    If an error or an interrupt ends the discovery, the next call starts again with another manager.

    >>> manager().stage("prune.channels").id
    'prune.channels'
    """
    global _manager, _incomplete
    if _manager is not None:
        return _manager
    if _discovering._is_owned() and _incomplete is not None:  # type: ignore[attr-defined]
        return _incomplete  # a plugin asks for it while it is loaded
    with _discovering:
        if _manager is None:
            _incomplete = Manager()
            with garbage_kept():
                _incomplete.discover()
            _manager = _incomplete
        return _manager


def known_stages(family: str = "") -> dict[str, type[Stage]]:
    """The stages that the installed plugins and the notebook offer, by id; of one family, if it is given.

    >>> "tune.finetune" in known_stages("tune")
    True
    """
    return {id: stage for id, stage in manager().stages().items() if not family or id.startswith(f"{family}.")}

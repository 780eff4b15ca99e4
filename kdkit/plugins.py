"""Plugins: found through entry points, loaded one by one in isolation, and known by what they offer.

A plugin that fails is listed with its reason and named where it matters; it never takes the kit down.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from kdkit import cells, hookspecs
from kdkit.contract import API, Stage, faults, foreign
from kdkit.errors import KdError, did_you_mean

if TYPE_CHECKING:
    from kdkit.tracing import Trace

GROUP = "kdkit"
"""The entry-point group; a plugin's pyproject says `[project.entry-points.kdkit]`."""


FIRST_SLIPS = {
    "leaf Variable that requires grad": "change weight.data, or work inside with torch.no_grad()",
    "Instance is frozen": "a stage is immutable: keep what you work out in local variables",
}
"""Words of an error that a stage raised -> what to do."""


@dataclass(frozen=True)
class Plugin:
    """One entry point, or what the cells of this notebook offered.

    Attributes:
        name: of the entry point.
        distribution: that brought it, and `version` of that.
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
        """Who this is, for messages: "kdkit-extra 0.2 (mine)"."""
        return f"{self.distribution} {self.version} ({self.name})".strip() if self.distribution else self.name


class Notebook:
    """The stages that cells of this session offered; running a cell again replaces its own."""

    def __init__(self) -> None:
        self.stages: dict[str, type[Stage]] = {}
        self.instead: dict[str, str] = {}
        """Id of a stage that is offered no more -> what its cell offered instead."""
        self._runs: dict[str, cells.Run] = {}

    @hookspecs.hookimpl
    def kdkit_stages(self) -> list[type[Stage]]:
        return list(self.stages.values())

    def put(self, stage: type[Stage]) -> None:
        """Keep a stage in place of those that an earlier run of the cell offered: one may have been renamed."""
        run = cells.current()
        for id in [id for id, earlier in self._runs.items() if run.replaces(earlier) and id != stage.id]:
            del self._runs[id]
            self.instead[id] = stage.id
            self.stages.pop(id, None)
        self.stages[stage.id] = stage
        self.instead.pop(stage.id, None)
        if stage.__module__ == "__main__":  # a module that the cell imports is not run again with it
            self._runs[stage.id] = run


class Protocol:
    """The kit's own answer to the protocol: let the stage do its work; and hints for what authors meet first."""

    @hookspecs.hookimpl
    def kdkit_error_hints(self, error: BaseException) -> list[str]:
        return [hint for words, hint in FIRST_SLIPS.items() if words in str(error)]

    @hookspecs.hookimpl(trylast=True)
    def kdkit_run_stage(self, stage: Stage, model: Any, context: Any) -> Any:
        made = stage.apply(model, context)
        return model if made is None else made


class Manager(pluggy.PluginManager):
    """Finds plugins, keeps the broken ones from doing harm, and knows who offers what."""

    def __init__(self) -> None:
        super().__init__(GROUP)
        self.add_hookspecs(hookspecs)
        self._plugins: dict[str, Plugin] = {}
        self._entries: dict[str, importlib.metadata.EntryPoint] = {}
        self._stages: dict[str, list[tuple[type[Stage], str]]] | None = None
        self._notebook = Notebook()
        self._cells: dict[str, ModuleType] = {}
        self.tracing: Trace | None = None
        self.register(Protocol(), "kdkit.protocol")
        self.register(self._notebook, "notebook")

    # finding and loading

    def discover(self) -> None:
        """Load every entry point of the group that is not known yet, each in isolation; `KDKIT_PLUGINS` (comma-separated) chooses some."""
        chosen = os.environ.get("KDKIT_PLUGINS")
        wanted = None if chosen is None else {name.strip() for name in chosen.split(",")} - {""}
        known = {(_distribution(entry)[0], entry.name) for entry in self._entries.values()}
        importlib.invalidate_caches()
        for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: (_distribution(entry)[0], entry.name)):
            record = Plugin(entry.name, *_distribution(entry))
            if (record.distribution, entry.name) in known:
                continue
            key = entry.name if entry.name not in self._entries else f"{entry.name}@{record.distribution}"
            self._entries[key] = entry
            self._plugins[key] = replace(record, name=key)
            if wanted is None or wanted & {entry.name, record.distribution}:
                self._load(key)
            else:
                self._plugins[key] = replace(self._plugins[key], status="blocked", reason="not named in KDKIT_PLUGINS")
        for name in sorted((wanted or set()) - {word for entry in self._entries.values() for word in (entry.name, _distribution(entry)[0])}):
            self._plugins[name] = Plugin(name, status="broken", reason="KDKIT_PLUGINS names it, and no such plugin is installed")

    def _load(self, key: str) -> None:
        try:
            self.add(self._entries[key].load(), key)
        except (Exception, SystemExit) as error:
            self._break(key, error)
        else:
            for id in self._plugins[key].offers:
                self._notebook.stages.pop(id, None)

    def add(self, plugin: Any, name: str) -> None:
        """Register one plugin, a module or an object; a class is instantiated.

        A plugin may say for which contract it was written, `kdkit_api = 1`; one that does not is taken at its word.

        Raises:
            KdError: it was written for another contract, a hook's name is not one of kdkit's, or a stage is not whole.
            pluggy.PluginValidationError: a hook takes an argument that it does not have.
        """
        if inspect.isclass(plugin):
            plugin = _instance(plugin)
        for fault in foreign(getattr(plugin, "kdkit_api", API)):
            raise KdError(fault)
        for hook in _marked(plugin):
            if not hasattr(self.hook, hook):
                raise KdError(f"it answers a hook {hook!r} that kdkit does not have", did_you_mean(hook, vars(self.hook)), f"hooks: {', '.join(sorted(vars(self.hook)))}")
            spec = getattr(self.hook, hook).spec
            if getattr(getattr(plugin, hook), f"{GROUP}_impl")["wrapper"] and not spec.opts["firstresult"]:
                raise KdError(f"it wraps {hook}, which each plugin is asked by itself", "there is nothing to stand around: answer it without wrapper=True")
        self.register(plugin, name)
        try:
            offered = self._offered_by(plugin)
        except (Exception, SystemExit):
            self.unregister(name=name)
            raise
        hooks = tuple(hook for hook in _marked(plugin) if hook != "kdkit_stages")
        self._plugins[name] = replace(self._plugins.get(name, Plugin(name)), status="ok", reason="", offers=(*(stage.id for stage in offered), *hooks))
        self._stages = None

    def _offered_by(self, plugin: Any) -> list[type[Stage]]:
        offered = list(plugin.kdkit_stages()) if "kdkit_stages" in _marked(plugin) else []
        wrong = [fault for stage in offered for fault in faults(stage)]
        if wrong:
            raise KdError("; ".join(wrong))
        return offered

    def _break(self, name: str, error: BaseException) -> None:
        """Mark a plugin as broken by an error that is being handled; `KDKIT_STRICT_PLUGINS=1` lets the error out, for authors."""
        if os.environ.get("KDKIT_STRICT_PLUGINS") == "1":
            if isinstance(error, KdError):
                error.inside(f"plugin {self._source(name)}")
            raise error
        message = error.message if isinstance(error, KdError) else f"{type(error).__name__}: {error}"
        self._plugins[name] = replace(self._plugins.get(name, Plugin(name)), status="broken", reason=message)
        self._stages = None

    # care

    def plugins(self) -> list[Plugin]:
        """All plugins, the broken and blocked ones too."""
        own = [Plugin("notebook", offers=tuple(self._notebook.stages))] if self._notebook.stages else []
        return [*self._plugins.values(), *own]

    @property
    def problems(self) -> list[Plugin]:
        """The plugins that are broken."""
        return [plugin for plugin in self._plugins.values() if plugin.status == "broken"]

    def block(self, name: str) -> list[Plugin]:
        """Take a plugin out, by its name or its distribution's, until `allow` or the end of the session."""
        found = self._named(name)
        for plugin in found:
            if self.has_plugin(plugin.name):
                self.unregister(name=plugin.name)
            self._plugins[plugin.name] = replace(plugin, status="blocked", reason="blocked in this session")
        self._stages = None
        return self._named(name)

    def allow(self, name: str) -> list[Plugin]:
        """Load a blocked plugin again."""
        for plugin in self._named(name):
            if plugin.status != "ok" and plugin.name in self._entries:
                self._load(plugin.name)
            elif plugin.status != "ok" and plugin.name in self._cells:
                self.add(self._cells[plugin.name], plugin.name)
        return self._named(name)

    def _named(self, name: str) -> list[Plugin]:
        found = [plugin for plugin in self._plugins.values() if name in (plugin.name, plugin.distribution)]
        if not found:
            known = {word for plugin in self._plugins.values() for word in (plugin.name, plugin.distribution) if word}
            raise KdError(f"no plugin {name!r}", did_you_mean(name, known), "%kd plugins lists them")
        return found

    # what they offer

    def contributions(self, hook: str) -> Iterator[tuple[str, Any]]:
        """(plugin's name, record) for each record that a contributing hook returns; one that raises is marked broken."""
        for implementation in list(getattr(self.hook, hook).get_hookimpls()):
            try:
                records = _records(hook, self._asked(hook, implementation))
            except (Exception, SystemExit) as error:
                self._break(implementation.plugin_name, error)
                continue
            yield from ((implementation.plugin_name, record) for record in records)

    def named(self, hook: str, name: str, noun: str) -> Any:
        """The record called `name` among what a contributing hook returns.

        Raises:
            KdError: there is none, or there are two.
        """
        found = [(plugin, record) for plugin, record in self.contributions(hook)]
        same = [(plugin, record) for plugin, record in found if record.name == name]
        if len(same) > 1:
            raise KdError(f"{noun} {name!r} is offered by {_both(self._source(plugin) for plugin, _ in same)}", "%kd plugins block NAME takes one of them out")
        if not same:
            raise KdError(
                f"no {noun} {name!r}",
                did_you_mean(name, [record.name for _, record in found]),
                f"there are: {', '.join(sorted(record.name for _, record in found))}" if found else f"no plugin brings a {noun}",
                *self.blame(),
            )
        return same[0][1]

    def stages(self) -> dict[str, type[Stage]]:
        """Every stage by id, those offered twice left out."""
        return {id: offers[0][0] for id, offers in self._all_stages().items() if len(offers) == 1}

    def stage(self, id: str) -> type[Stage]:
        """The stage of that id.

        Raises:
            KdError: there is none, or two plugins offer it; the message names them.
        """
        offers = self._all_stages().get(id, [])
        if len(offers) > 1:
            raise KdError(f"{id.replace('.', ' ', 1)} is offered by {_both(self._source(name) for _, name in offers)}", "%kd plugins block NAME takes one of them out")
        if offers:
            return offers[0][0]
        written = next((each for each in reversed(list(_derived(Stage))) if each.id == id and not published(each.__module__)), None)
        # a plugin that is down and has it is the reason, whatever a cell wrote under that name
        if written is not None and not any(id in plugin.offers for plugin in self._plugins.values() if plugin.status != "ok"):
            if instead := self._notebook.instead.get(id):
                raise KdError(f"{id.replace('.', ' ', 1)} is offered no more: its cell was run again without it", f"that cell offers {instead.replace('.', ' ', 1)} now")
            decorate = [] if "source" in vars(written) else [f'put @kdkit.stage("{id}") above class {written.__name__}']
            raise KdError(f"{id.replace('.', ' ', 1)} was written, and not offered", *faults(written), *decorate)
        family, _, technique = id.partition(".")
        families = {known.partition(".")[0] for known in self._all_stages()}
        if family not in families:
            raise KdError(f"no family {family!r}", did_you_mean(family, families), f"families: {', '.join(sorted(families))}", *self.blame())
        known = [known.partition(".")[2] for known in self._all_stages() if known.startswith(family + ".")]
        raise KdError(f"no technique {technique!r} in {family}", did_you_mean(technique, known), f"%kd list {family} shows: {', '.join(sorted(known))}", *self.blame())

    def provider(self, id: str) -> Plugin:
        """Who offers a stage; for what stands for several stages, the kit."""
        offers = self._all_stages().get(id)
        return self._plugins.get(offers[0][1], Plugin("notebook")) if offers else Plugin("kdkit")

    def offer(self, stage: type[Stage]) -> None:
        """Offer a stage from this session; one of the same id from an earlier cell is replaced.

        Raises:
            KdError: the stage is not whole, or an installed plugin offers that id.
        """
        wrong = list(faults(stage))
        if wrong:
            raise KdError("; ".join(wrong))
        others = [name for _, name in self._all_stages().get(stage.id, []) if name != "notebook"]
        if others:
            raise KdError(f"{stage.id} is offered by {self._source(others[0])} already", "choose another id, or %kd plugins block " + others[0])
        self._notebook.put(stage)
        self._stages = None

    def answer(self, function: Callable) -> None:
        """Answer a hook from this session with a function of its name; one from an earlier cell is replaced.

        Raises:
            KdError: kdkit has no hook of that name.
            pluggy.PluginValidationError: it takes an argument that the hook does not have.
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

    def withdraw(self, function: Callable | str) -> None:
        """Take back what a cell answered, by the function or the hook's name."""
        name = f"notebook:{getattr(function, '__name__', function)}"
        if self._cells.pop(name, None) is not None:
            self._plugins.pop(name)
            if self.has_plugin(name):
                self.unregister(name=name)
            self._stages = None

    def forget(self) -> None:
        """Ask the plugins again for their stages at the next need."""
        self._stages = None

    def blame(self) -> list[str]:
        """Hints that name the plugins which might have offered what is missing."""
        down: dict[tuple[str, str], list[str]] = {}
        for plugin in self._plugins.values():
            if plugin.status != "ok":
                down.setdefault((plugin.status, plugin.reason), []).append(plugin.source)
        return [
            f"plugin{'s'[: len(names) - 1]} {', '.join(names)} may offer more, but {'is' if len(names) == 1 else 'are'} {status}: {reason}  (%kd plugins)"
            for (status, reason), names in down.items()
        ]

    def _all_stages(self) -> dict[str, list[tuple[type[Stage], str]]]:
        if self._stages is None:
            found: dict[str, list[tuple[type[Stage], str]]] = {}
            for name, stage in self.contributions("kdkit_stages"):
                found.setdefault(stage.id, []).append((stage, name))
            self._stages = found
        return self._stages

    def _source(self, name: str) -> str:
        return self._plugins.get(name, Plugin(name)).source

    # telling

    def each(self, hook: str, complain: Callable[[str], None], **arguments: Any) -> list[Any]:
        """Call a hook implementation by implementation; one that raises is reported through `complain` and passed over."""
        implementations = list(getattr(self.hook, hook).get_hookimpls())
        return [answer for each in implementations for answer in self._spared(hook, each, complain, arguments)]

    def first(self, hook: str, complain: Callable[[str], None], **arguments: Any) -> Any:
        """The first answer that is not None, latest plugin first; one that raises is reported and passed over.

        Raises:
            KdError: an implementation did, to say that the object is its own, and wrong.
        """
        for implementation in reversed(getattr(self.hook, hook).get_hookimpls()):
            for answer in self._spared(hook, implementation, complain, arguments, KdError):
                if answer is not None:
                    return answer
        return None

    def _spared(
        self, hook: str, implementation: pluggy.HookImpl, complain: Callable[[str], None], arguments: dict[str, Any], meant: type[Exception] | tuple[()] = ()
    ) -> list[Any]:
        try:
            return [self._asked(hook, implementation, arguments)]
        except meant:
            raise
        except Exception as error:
            complain(f"plugin {self._source(implementation.plugin_name)}: {hook} raised {type(error).__name__}: {error}")
            return []

    def _asked(self, hook: str, implementation: pluggy.HookImpl, arguments: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """One implementation's answer, asked for in pluggy's own way, so that a trace hears of it."""
        return self._hookexec(hook, [implementation], arguments, True)


def offer(function: Callable) -> Callable:
    """Answer a hook from a cell, with a function of the hook's name; running the cell again replaces it.

    In the module of an installed plugin it does what `kdkit.hookimpl` does.

    Raises:
        KdError: kdkit has no hook of that name.

    >>> @offer
    ... def kdkit_error_hints(error):
    ...     return ["try a smaller --batch-size"] if "out of memory" in str(error) else []
    """
    if not hasattr(function, f"{GROUP}_impl"):
        hookspecs.hookimpl(function)
    if not published(function.__module__):
        manager().answer(function)
    return function


def published(module: str) -> bool:
    """Whether a module belongs to a package that an installed plugin's entry point names: its hooks offer what is in it.

    >>> published("kdkit_prune.channels"), published("__main__")
    (True, False)
    """
    package = module.partition(".")[0]
    return package != "__main__" and any(entry.module.partition(".")[0] == package for entry in importlib.metadata.entry_points(group=GROUP))


def _records(hook: str, answer: Any) -> list[Any]:
    """What a contributing hook returned, as a list.

    Raises:
        KdError: it is none, or something in it can't be chosen by name.
    """
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        raise KdError(f"its {hook} returned {'nothing' if answer is None else f'one {type(answer).__name__}'}, where a list is wanted")
    records = list(answer)
    for record in records if hook != "kdkit_stages" else ():
        if isinstance(record, type):
            raise KdError(f"its {hook} returned the class {record.__name__}; return an instance: {record.__name__}()")
        if not isinstance(getattr(record, "name", None), str):
            raise KdError(f"its {hook} returned a {type(record).__name__}, which has no name to be chosen by")
    return records


def _distribution(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else ("", "")


def _derived(kind: type[Stage]) -> Iterator[type[Stage]]:
    for each in kind.__subclasses__():
        yield each
        yield from _derived(each)


def _instance(plugin: type) -> Any:
    try:
        return plugin()
    except TypeError as error:
        raise KdError(f"it is the class {plugin.__name__}, and making an instance failed: {error}", "name a module or an object in the entry point") from error


def _marked(plugin: Any) -> list[str]:
    return [name for name in dir(plugin) if hasattr(inspect.getattr_static(plugin, name), GROUP + "_impl")]


def _both(sources: Iterator[str]) -> str:
    return " and by ".join(sources)


_manager: Manager | None = None


def manager() -> Manager:
    """The one manager of this process; plugins are discovered at its first use.

    >>> manager().stage("prune.channels").id
    'prune.channels'
    """
    global _manager
    if _manager is None:
        _manager = Manager()
        _manager.discover()
    return _manager

"""The stage registry: every stage by id, who offers it, and why one is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from kdkit.errors import KdError, did_you_mean
from kdkit.plugins.discovery import Plugin, offered_twice, published, unavailable_hints
from kdkit.plugins.notebook_plugin import Notebook
from kdkit.stages.stage import Stage
from kdkit.stages.validation import validate_stage

Offers = dict[str, list[tuple[type[Stage], str]]]
"""Id -> (stage, name of the plugin that offers it) for each offer."""


class StageRegistry:
    """The stages that plugins and notebook cells offer.

    Args:
        contributions: yields (name of a plugin, stage) for each stage on offer.
        plugins: by name; the manager's own mapping, which changes.
        notebook: the stages of cells.
    """

    def __init__(self, contributions: Callable[[], Iterable[tuple[str, type[Stage]]]], plugins: Mapping[str, Plugin], notebook: Notebook):
        self._contributions, self._plugins, self._notebook = contributions, plugins, notebook
        self._offers: Offers | None = None

    def forget(self) -> None:
        """Ask the plugins for their stages again when one is needed."""
        self._offers = None

    def offers(self) -> Offers:
        """All offers by id; more than one for an id is a conflict."""
        if self._offers is None:
            found: Offers = {}
            for name, stage in self._contributions():
                found.setdefault(stage.id, []).append((stage, name))
            self._offers = found
        return self._offers

    def stages(self) -> dict[str, type[Stage]]:
        """Every stage by id, without those in conflict."""
        return {id: offers[0][0] for id, offers in self.offers().items() if len(offers) == 1}

    def find(self, id: str) -> type[Stage]:
        """The stage of that id.

        Raises:
            KdError: there is none, or two plugins offer it; the message names them.
        """
        offers = self.offers().get(id, [])
        if len(offers) > 1:
            raise offered_twice(_title(id), (self.source(name) for _, name in offers))
        if not offers:
            self._raise_not_offered(id)
            self._raise_unknown(id)
        return offers[0][0]

    def known_as(self, name: str) -> list[str]:
        """The ids of the techniques that have another name, such as "RKD"; case, spaces and dashes don't count."""
        return [id for id, stage in self.stages().items() if _folded(name) in map(_folded, stage.other_names())]

    def provider(self, id: str) -> Plugin:
        """The plugin that offers a stage; kdkit itself for a group of stages."""
        offers = self.offers().get(id)
        return self._plugins.get(offers[0][1], Plugin("notebook")) if offers else Plugin("kdkit")

    def source(self, plugin: str) -> str:
        """A plugin's name in messages."""
        return self._plugins.get(plugin, Plugin(plugin)).source

    def offer(self, stage: type[Stage]) -> None:
        """Offer a stage from a cell; it replaces a stage of the same id from an earlier cell.

        Raises:
            KdError: the stage is invalid, or an installed plugin offers that id.
        """
        if wrong := list(validate_stage(stage)):
            raise KdError("; ".join(wrong))
        others = [name for _, name in self.offers().get(stage.id, []) if name != "notebook"]
        if others:
            raise KdError(f"{stage.id} is offered by {self.source(others[0])} already", f"choose another id, or %kd plugins block {others[0]}")
        self._notebook.put(stage)
        self.forget()

    def _raise_not_offered(self, id: str) -> None:
        """Explain a stage class that a cell defines and does not offer, unless a blocked or broken plugin is the reason."""
        defined = next((each for each in reversed(list(_subclasses(Stage))) if each.id == id and not published(each.__module__)), None)
        if defined is None or any(id in plugin.offers for plugin in self._plugins.values() if plugin.status != "ok"):
            return
        if instead := self._notebook.instead.get(id):
            raise KdError(f"{_title(id)} is no longer offered: its cell ran again without it", f"that cell now offers {_title(instead)}")
        decorate = [] if "source" in vars(defined) else [f'put @kdkit.stage("{id}") above class {defined.__name__}']
        raise KdError(f"{_title(id)} is defined but not offered", *validate_stage(defined), *decorate)

    def _raise_unknown(self, id: str) -> None:
        family, _, technique = id.partition(".")
        if meant := self.known_as(technique or family):
            raise other_name(technique or family, meant)
        families = {known.partition(".")[0] for known in self.offers()}
        hints = unavailable_hints(self._plugins.values())
        if family not in families:
            raise KdError(f"no family {family!r}", did_you_mean(family, families), f"families: {', '.join(sorted(families))}", *hints)
        known = [known.partition(".")[2] for known in self.offers() if known.startswith(f"{family}.")]
        raise KdError(f"no technique {technique!r} in {family}", did_you_mean(technique, known), f"%kd list {family} shows: {', '.join(sorted(known))}", *hints)


def other_name(name: str, ids: Iterable[str], options: str = "") -> KdError:
    """The error for a technique's other name in place of its id.

    Args:
        name: as it was written.
        ids: of the techniques that have it.
        options: what was written after it.

    >>> print(other_name("RKD", ["distill.relations"], "--epochs 3"))
    RKD is distill relations
      hint: %kd distill relations --epochs 3
      hint: %kd help distill relations explains it
    """
    titles = [_title(id) for id in ids]
    lines = [f"%kd {title} {options}".rstrip() for title in titles]
    return KdError(f"{name} is {' or '.join(titles)}", *lines, *(f"%kd help {title} explains it" for title in titles[:1]))


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _title(id: str) -> str:
    return id.replace(".", " ", 1)


def _subclasses(kind: type[Stage]) -> Iterator[type[Stage]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)

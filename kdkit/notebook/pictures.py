"""The verbs that show something of versions: where they stand, what they are made of, what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.contract import param
from kdkit.notebook.verbs import Verb

if TYPE_CHECKING:
    from kdkit.notebook.desk import Desk


class Pareto(Verb):
    """Which versions no other one beats in both quality and cost, as a picture; all of them when none is named."""

    places: ClassVar = ("versions",)
    sample: ClassVar = "%kd pareto @base @slim --cost latency"

    versions: tuple[str, ...] = param((), "the versions", refers="version")
    quality: str = param("", "a figure; the task's own metric when not said")
    cost: str = param("size", "a figure, such as latency, macs or energy")

    def run(self, desk: Desk) -> Any:
        return desk.session.pareto(*self.versions, quality=self.quality, cost=self.cost)


class Layers(Verb):
    """The modules of a version as a tree that folds: class, parameters, bytes, share and MACs of each, and their sizes as bars."""

    places: ClassVar = ("version",)
    sample: ClassVar = "%kd layers @slim --layers 'encoder.*'"

    version: str | None = param(None, "the head when not said", refers="version")
    layers: tuple[str, ...] = param((), "patterns of layers to mark and to list alone", refers="layers")

    def run(self, desk: Desk) -> Any:
        return desk.session.layers(self.version, self.layers)

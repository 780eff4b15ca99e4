"""The verbs that show something of versions: where they stand, what they are made of, what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from kdkit.contract import param
from kdkit.notebook.page import Written
from kdkit.notebook.verbs import Verb

if TYPE_CHECKING:
    from kdkit.notebook.desk import Desk


class Pareto(Verb):
    """Which versions no other one beats in both quality and cost, as a picture; all of them when none is named."""

    places: ClassVar = ("versions",)
    sample: ClassVar = "%kd pareto @base @slim --cost latency"

    versions: tuple[str, ...] = param((), "the versions", refers="version")
    quality: str = param("", "a figure; the task's own metric when not said", refers="figure")
    cost: str = param("size", "a figure, such as latency, macs or energy", refers="figure")

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


class Sensitivity(Verb):
    """How much quality each layer alone costs when its weights are rounded, or its smallest zeroed; the version stays as it is."""

    places: ClassVar = ("version",)
    sample: ClassVar = "%kd sensitivity @base --bits 4"

    version: str | None = param(None, "the head when not said", refers="version")
    bits: int = param(4, "to which each layer's weights are rounded, symmetric, a step an output channel", ge=2, le=16)
    ratio: float | None = param(None, "share of each layer's smallest weights that are zeroed, instead of rounding", gt=0, le=1)
    layers: tuple[str, ...] = param((), "patterns of the layers; all that have weights when not said", refers="layers")
    items: int = param(256, "of the eval data to look at", ge=1)

    def run(self, desk: Desk) -> Any:
        with desk.progress() as observe:
            return desk.session.sensitivity(self.version, bits=self.bits, ratio=self.ratio, layers=self.layers, items=self.items, observe=observe)


class Weights(Verb):
    """How the weights of two versions lie, before and after: of one layer, or of all; zeros, distinct values, extremes."""

    places: ClassVar = ("before", "after")
    sample: ClassVar = "%kd weights @base @slim --layer features.0"

    before: str | None = param(None, "the first version when not said", refers="version")
    after: str | None = param(None, "the head when not said", refers="version")
    layer: str = param("", "name or pattern of a layer; all when not said", refers="layers")

    def run(self, desk: Desk) -> Any:
        return desk.session.weights(self.before, self.after, self.layer)


class Confusion(Verb):
    """Which class a version takes for which: labels against decisions, as a map and class by class."""

    places: ClassVar = ("version",)
    sample: ClassVar = "%kd confusion @slim"

    version: str | None = param(None, "the head when not said", refers="version")
    data: str = param("eval", "data with labels", refers="data")

    def run(self, desk: Desk) -> Any:
        with desk.handed_over():
            return desk.session.confusion(self.version, self.data)


class Report(Verb):
    """The session as something to keep: figures, frontier, how a version was made, notes and pictures; here, or as a page in a file."""

    places: ClassVar = ("path",)
    sample: ClassVar = "%kd report slim.html --version @slim"

    path: str | None = param(None, "an .html file that takes the page; it is shown here when not said", refers="path")
    version: str | None = param(None, "whose line is told; the head when not said", refers="version")
    quality: str = param("", "figure of the frontier; the task's own metric when not said", refers="figure")
    cost: str = param("size", "figure of the frontier, such as latency, macs or energy", refers="figure")

    def run(self, desk: Desk) -> Any:
        summary = desk.session.summary(self.version, quality=self.quality, cost=self.cost)
        return summary if self.path is None else Written(summary.save(self.path), f"the report on {desk.session.version(self.version).name} was written")

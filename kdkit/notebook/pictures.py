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

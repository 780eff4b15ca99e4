"""The objects and packages that a stage needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from kdkit.parameters.settings import option
from kdkit.stages.stage import Needs, Stage


def named_objects(stage: Stage) -> Iterator[tuple[str, str, str]]:
    """(option, kind, name) for each object of the session that a stage names."""
    for name, kind, value in stage.named_objects():
        yield option(name), kind, value


def missing_packages(needs: Needs) -> list[str]:
    """The packages among the needs that are not installed.

    >>> missing_packages(Needs(packages=("json", "not_there_at_all")))
    ['not_there_at_all']
    """
    return [name for name in needs.packages if importlib.util.find_spec(name) is None]

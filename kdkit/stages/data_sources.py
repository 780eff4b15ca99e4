"""The names of a session's data sets, and which of them serves which purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdkit.data import Data

DATA = ("train", "eval", "calibration", "validation", "example")
"""The names under which stages and measures look for data."""

EXAMPLE = ("example", "eval", "train", "calibration")
"""Where an example batch comes from: the first of these that the session has."""

CALIBRATION = ("calibration", "train", "eval")
"""Where calibration batches come from: the first of these that the session has."""

OPTIONAL_CALIBRATION = ("calibration", "train")
"""Where the batches come from for a stage that works without them: never evaluation data, which is for measuring."""


def first_source(objects: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of `names` that has an object; None if none has.

    >>> first_source({"train": "images", "eval": None}, EXAMPLE)
    'train'
    """
    return next((name for name in names if objects.get(name) is not None), None)


def first_data(objects: Mapping[str, Any], names: Iterable[str]) -> Data | None:
    """The data set under the first of `names` that has one; None if none has."""
    name = first_source(objects, names)
    return None if name is None else objects[name]

"""Blame: which stage of a loop an error came from, so that a message names it and not only the group."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

from kdkit.stages.stage import Stage

_STAGE = "kdkit_stage"


def note_stage(error: BaseException, owners: Sequence[tuple[Any, Stage]]) -> None:
    """Note on an error the stage whose method raised it, or called what raised it.

    Args:
        owners: (stage or part, stage that it belongs to).
    """
    if stage_of(error) is not None:
        return
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        owner = frame.f_locals.get("self")
        stage = next((stage for known, stage in owners if known is owner), None)
        if stage is not None:
            setattr(error, _STAGE, stage)
            return


def stage_of(error: BaseException) -> Any:
    """The stage whose code raised an error; None if it is not known.

    >>> stage_of(ValueError())
    """
    return getattr(error, _STAGE, None)

"""The step log: what happens to the stages of a session, as records of Python's logger `kdkit`.

kdkit only writes records, of level INFO; the application chooses where they go: `logging.basicConfig(level="INFO")`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

from kdkit.errors import KdError, describe_exception, printable
from kdkit.session.history import Version
from kdkit.stages.stage import Stage

LOGGER = logging.getLogger("kdkit")
LOGGER.addHandler(logging.NullHandler())


def log_begin(stage: Stage) -> None:
    """Log that a stage begins."""
    _log(lambda: [f"{stage.line()} begins"])


def log_end(stage: Stage, version: Version) -> None:
    """Log a stage's version with its figures, and its notes in a record each."""
    _log(lambda: [_describe(stage, version), *(f"{stage.title}: note: {note}" for note in version.notes)])


def log_error(stage: Stage, outcome: str, error: BaseException) -> None:
    """Log that a stage ended without a version: `outcome` is "failed" or "cancelled"."""
    _log(lambda: [f"{stage.line()} {outcome}: {error.message if isinstance(error, KdError) else describe_exception(error)}"])


def _describe(stage: Stage, version: Version) -> str:
    figures = ", ".join(f"{figure.name} {figure.text()}" for figure in version.report.figures)
    return f"{stage.line()} made {version.name} in {version.seconds or 0:.1f} s" + (f": {figures}" if figures else "")


def _log(make: Callable[[], list[str]]) -> None:
    """Write records; a handler of the application that fails is a warning, and the stage goes on."""
    if LOGGER.isEnabledFor(logging.INFO):
        try:
            for text in make():
                LOGGER.info("%s", printable(text))
        except Exception as error:
            warnings.warn(f"the log raised {describe_exception(error)}", stacklevel=2)

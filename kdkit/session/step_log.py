"""The step log: what happens to the stages of a session, as records of Python's logger `kdkit`.

kdkit only writes records, of level INFO; the application chooses where they go: `logging.basicConfig(level="INFO")`.
"""

from __future__ import annotations

import logging

from kdkit.errors import KdError, describe_exception, printable
from kdkit.session.history import Version
from kdkit.stages.stage import Stage

LOGGER = logging.getLogger("kdkit")
LOGGER.addHandler(logging.NullHandler())


def log_begin(stage: Stage) -> None:
    """Log that a stage begins."""
    if LOGGER.isEnabledFor(logging.INFO):
        LOGGER.info("%s begins", printable(stage.line()))


def log_end(stage: Stage, version: Version) -> None:
    """Log a stage's version with its figures, and its notes in a record each."""
    if LOGGER.isEnabledFor(logging.INFO):
        figures = ", ".join(f"{figure.name} {figure.text()}" for figure in version.report.figures)
        LOGGER.info("%s made %s in %.1f s%s", printable(stage.line()), version.name, version.seconds or 0, f": {figures}" if figures else "")
        for note in version.notes:
            LOGGER.info("%s: note: %s", stage.title, printable(note))


def log_error(stage: Stage, outcome: str, error: BaseException) -> None:
    """Log that a stage ended without a version: `outcome` is "failed" or "cancelled"."""
    if LOGGER.isEnabledFor(logging.INFO):
        message = error.message if isinstance(error, KdError) else describe_exception(error)
        LOGGER.info("%s %s: %s", printable(stage.line()), outcome, printable(message))

"""What every `%kd` line has in common: the options beside those of its stage or verb, and the words that are verbs."""

from __future__ import annotations

from typing import Any

from kdkit.errors import KdError
from kdkit.parameters.settings import Settings, param


class Line(Settings):
    """Options of every line."""

    o: str | None = param(None, "variable for the result")
    quiet: bool = param(False, "show no progress")
    debug: bool = param(False, "show an error with its full traceback; alone, show the last error")

    def model_post_init(self, context: Any) -> None:
        if self.o is not None and not self.o.isidentifier():
            raise KdError(f"-o {self.o!r} is not the name of a variable")


class Running(Settings):
    """Options of every line that runs stages."""

    on: str | None = param(None, "version to start from; default: the head", names="version")
    as_: str | None = param(None, "label of the new version")
    seed: int | None = param(None, "random seed; default: the session's", ge=0)
    dry_run: bool = param(False, "only validate the order and predict parameters, bytes and MACs")


LINE_OPTIONS = frozenset({*Line.model_fields, *Running.model_fields})
"""Names that a stage can't use for its own parameters."""

RESERVED_WORDS = frozenset(
    {
        "agreement",
        "code",
        "compare",
        "compare-with",
        "confusion",
        "doctor",
        "drop",
        "eval",
        "examples",
        "export",
        "help",
        "keep",
        "layers",
        "list",
        "load",
        "new-plugin",
        "pareto",
        "plugins",
        "pop",
        "redo",
        "report",
        "rerun",
        "restore",
        "run",
        "save",
        "sensitivity",
        "sessions",
        "set",
        "status",
        "switch",
        "undo",
        "use",
        "weights",
        "wizard",
    }
)
"""The verbs of `%kd`. A line that begins with one of these words is a verb's, so no family can have such a name."""

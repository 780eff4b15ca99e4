"""The question mark behind a `%kd` line: `%kd prune channels?` explains the technique, as `name?` explains a Python object."""

from __future__ import annotations

from typing import Any

from IPython.core.inputtransformer2 import HelpEnd, TokenTransformBase


class LineHelp(TokenTransformBase):
    """Turns `%kd LINE?` into `%kd LINE --help`, where IPython alone would explain the last word as a Python object."""

    priority = HelpEnd.priority - 1

    @classmethod
    def find(cls, tokens_by_line: list[list[Any]]) -> LineHelp | None:
        """The first such line of a cell; `%kd?` is IPython's own."""
        for tokens in tokens_by_line:
            words = [token for token in tokens if token.string.strip()]
            if [word.string for word in words[:2]] == ["%", "kd"] and words[0].line.rstrip().endswith("?") and len(words) > 3:
                return cls(words[0].start)
        return None

    def transform(self, lines: list[str]) -> list[str]:
        """The cell's lines with the line rewritten."""
        line = lines[self.start_line].rstrip().rstrip("?").rstrip()
        return [*lines[: self.start_line], f"{line} --help\n", *lines[self.start_line + 1 :]]

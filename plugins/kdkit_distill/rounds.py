"""Rounds: several trainings within one stage, each of which tells which one it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdkit.context import Progress

if TYPE_CHECKING:
    from kdkit.context import Context


@dataclass(frozen=True)
class Round:
    """One of several trainings.

    Attributes:
        number: from 1, of `count`.
        name: what it is, for the progress line.
        span: how many of them it stands for, where it consists of several itself.
        mark: what tells its figures from those of the others, so that a live curve does not join them.
    """

    number: int
    count: int
    name: str
    span: int = 1
    mark: str = ""

    def of(self, context: Context, heard: Callable[[Progress], None] = lambda progress: None, **changes: Any) -> Context:
        """The context of this training: its progress is that of the whole, its notes and exhibits are its own.

        Args:
            heard: is told each message as it was, before it becomes a part of the whole.
            changes: of the context, such as a seed.
        """

        def observe(progress: Progress) -> None:
            heard(progress)
            one = progress.total / self.span
            done = progress.done + (self.number - 1) * one
            text = f"{self.name}: {progress.text}" if progress.text else self.name
            figures = {f"{name} ({self.mark})": figure for name, figure in progress.figures.items() if name != "learning_rate"} if self.mark else progress.figures
            context.observe(replace(progress, done=done, total=self.count * one, text=text, figures=figures))

        return replace(context, observe=observe, notes=[], exhibits=[], **changes)

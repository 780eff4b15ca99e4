"""Rounds: several trainings within one stage, each reporting its share of the total progress."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdkit import Progress

if TYPE_CHECKING:
    from kdkit import Context


@dataclass(frozen=True)
class Round:
    """One of several trainings.

    Attributes:
        number: from 1, of `count`.
        name: for the progress line.
    """

    number: int
    count: int
    name: str

    def of(self, context: Context, **changes: Any) -> Context:
        """The context of this training: it reports a share of the total progress, and has its own notes and attachments.

        Args:
            changes: of the context, such as its objects.
        """

        def observe(progress: Progress) -> None:
            done = progress.done + (self.number - 1) * progress.total
            text = f"{self.name}: {progress.text}" if progress.text else self.name
            context.channel.progress(replace(progress, done=done, total=self.count * progress.total, text=text))

        return replace(context, observe=observe, notes=[], attachments=[], **changes)

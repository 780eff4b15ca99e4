"""The one error a user meets: what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KdError(Exception):
    """A message with hints, shown in a notebook as a real error without a traceback.

    Args:
        message: what was wrong, and where.
        hints: what to do next, one line each.

    `%tb`, or `%kd --debug`, shows the traceback and its cause.

    >>> print(KdError("no technique 'l3' in prune", "did you mean l1?"))
    no technique 'l3' in prune
      hint: did you mean l1?
    """

    def __init__(self, message: str, *hints: str):
        super().__init__(message, *hints)
        self.message = message
        self.hints = tuple(hint for hint in hints if hint)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  hint: {hint}" for hint in self.hints)])

    def _render_traceback_(self) -> list[str]:
        return [f"\x1b[1m{type(self).__name__}\x1b[0m: {self.message}", *(f"  hint: {hint}" for hint in self.hints)]

    def inside(self, title: str) -> KdError:
        """The same error, its message beginning with where it happened.

        >>> KdError("the loss is not finite").inside("tune finetune").message
        'tune finetune: the loss is not finite'
        """
        if title not in self.message:
            self.message = f"{title}: {self.message}"
            self.args = (self.message, *self.hints)
        return self

    def with_hints(self, *hints: str) -> KdError:
        """The same error with more hints.

        >>> KdError("no data").with_hints("%kd set --train {loader}").hints
        ('%kd set --train {loader}',)
        """
        self.hints += tuple(hint for hint in hints if hint and hint not in self.hints)
        self.args = (self.message, *self.hints)
        return self


class Cancelled(KdError):
    """A stage was asked to stop and stopped; nothing was committed.

    Attributes:
        resumable: it left a checkpoint, from which the same stage with `resume` goes on.
    """

    resumable: bool = False


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the known words nearest to `word`, or an empty string.

    >>> did_you_mean("chanels", ["channels", "heads"])
    'did you mean channels?'
    """
    scored = sorted(((_likeness(word, name), name) for name in known), reverse=True)[:2]
    near = [name for likeness, name in scored if likeness >= max(0.6, scored[0][0] - 0.1)]
    return f"did you mean {' or '.join(near)}?" if near else ""


def _likeness(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, word.strip("-@"), name.strip("-@")).ratio()

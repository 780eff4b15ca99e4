"""The one error a user meets: what was wrong, where, and what to do next."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any


class KdError(Exception):
    """A message with hints, shown in a notebook as a real error without a traceback.

    Args:
        message: what was wrong, and where.
        hints: what to do next, one line each.

    Control characters in them are escaped. `%tb`, or `%kd --debug`, shows the traceback and its cause.

    >>> print(KdError("no technique 'l3' in prune", "did you mean l1?"))
    no technique 'l3' in prune
      hint: did you mean l1?
    """

    def __init__(self, message: str, *hints: str):
        self.message = printable_lines(message)
        self.hints = tuple(printable_lines(hint) for hint in hints if hint)
        super().__init__(self.message, *self.hints)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  hint: {hint}" for hint in self.hints)])

    def _render_traceback_(self) -> list[str]:
        return [f"\x1b[1m{type(self).__name__}\x1b[0m: {self.message}", *(f"  hint: {hint}" for hint in self.hints)]

    def inside(self, title: str) -> KdError:
        """The same error, its message beginning with where it happened.

        >>> KdError("the loss is not finite").inside("tune finetune").message
        'tune finetune: the loss is not finite'
        """
        if title not in self.message and title.replace(" ", ".", 1) not in self.message:
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
    """A hint naming the known words nearest to `word`, or that it begins, or an empty string.

    >>> did_you_mean("chanels", ["channels", "heads"]), did_you_mean("--temp", ["--temperature", "--teacher"])
    ('did you mean channels?', 'did you mean --temperature?')
    """
    known = list(known)
    scored = sorted(((_likeness(word, name), name) for name in known), reverse=True)[:2]
    near = [name for likeness, name in scored if likeness >= max(0.6, scored[0][0] - 0.1)]
    begun = [name for name in sorted(known, key=len) if len(word.strip("-@")) > 1 and name.strip("-@").startswith(word.strip("-@"))]
    named = list(dict.fromkeys(begun[:MOST_NAMED] or near))
    return f"did you mean {' or '.join(named)}?" if named else ""


MOST_NAMED = 5
"""Words that a hint names, of those that a word begins."""


def _likeness(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, word.strip("-@"), name.strip("-@")).ratio()


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, end a line, turn the direction of the text, or can't be encoded."""


def printable(text: str) -> str:
    """A text that a file or another person chose, with its control characters and line breaks written as escapes.

    >>> printable("slim\\n!touch"), printable("Größe 1 µs")
    ('slim\\\\n!touch', 'Größe 1 µs')
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode(), text)


def printable_lines(text: str) -> str:
    """A text of several lines, in which line breaks stay and all other control characters are escaped.

    >>> printable_lines("a\\nb\\x1b[2J")
    'a\\nb\\\\x1b[2J'
    """
    return "\n".join(map(printable, text.split("\n")))


LONGEST_MESSAGE = 2000
"""Characters of a foreign error's message that are shown."""


def read_message(error: BaseException) -> str:
    """The message of an error of others, which may be long, hold control characters, or fail to be written.

    >>> read_message(ValueError("no\\x1b[2J layers"))
    'no\\\\x1b[2J layers'
    """
    try:
        text = printable_lines(str(error)[: LONGEST_MESSAGE + 1].strip().replace("\r\n", "\n"))
    except KeyboardInterrupt:
        raise
    except BaseException as failed:  # code of others
        return f"its message can't be written ({type(failed).__name__})"
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."


def describe_exception(error: BaseException) -> str:
    """An error of others by its class and message.

    >>> describe_exception(ValueError("no layers")), describe_exception(ValueError())
    ('ValueError: no layers', 'ValueError, without a message')
    """
    name, message = printable(type(error).__name__), read_message(error)
    return f"{name}: {message}" if message else f"{name}, without a message"


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel = 3

    def repr_int(self, value: int, level: int) -> str:
        return repr(value) if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"


_BRIEF = _Brief()


def brief(value: Any) -> str:
    """The `repr` of a value for a message, cut where it is long.

    >>> brief("a" * 10), brief([0] * 9), len(brief("a" * 999))
    ("'aaaaaaaaaa'", '[0, 0, 0, 0, 0, 0, ...]', 80)
    """
    return printable(_BRIEF.repr(value))

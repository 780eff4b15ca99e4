"""Splitting a `%kd` line into words, and the references to objects in it."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdkit.errors import KdError


@dataclass(frozen=True)
class Reference:
    """A Python expression in a line, `{expression}` or `$name`; the notebook replaces it by the object.

    Attributes:
        source: the expression.
        flag: the option it was joined to with `=`, if it was.
    """

    source: str
    flag: str = ""

    def __str__(self) -> str:
        return "{" + self.source + "}"


def split(line: str) -> list[Any]:
    """Cut a line into words: quotes group, a word that begins with `#` starts a comment, a backslash is a character like any other.

    `{expression}` and `$name` outside quotes make the word a `Reference`: to the object if they are the whole word (or all that
    follows `--option=`), else to the text with their values in it, as in an f-string. `{{` is a brace. A `;` at the end of the line is dropped.

    >>> split("prune channels --layers 'a b' {loaders['train']} {{x}}; # comment")
    ['prune', 'channels', '--layers', 'a b', Reference(source="loaders['train']", flag=''), '{x}']
    >>> split("save out_{i:02}/$name")
    ['save', Reference(source="f'out_{i:02}/{name}'", flag='')]

    Raises:
        KdError: a quote or a brace is not closed.
    """
    return scan(line)[0]


def scan(line: str) -> tuple[list[Any], bool]:
    """The words of a line as in `split`, and whether it ends with `;`, which suppresses the output.

    >>> scan("undo 2  ; # back"), scan("save 'a;'")
    ((['undo', '2'], True), (['save', 'a;'], False))

    Raises:
        KdError: a quote or a brace is not closed.
    """
    words: list[Any] = []
    at = 0
    while at < len(line) and line[at] != "#":
        if _END.match(line, at):
            return words, True
        if line[at].isspace():
            at += 1
        else:
            word, at = _word_at(line, at)
            words.append(word)
    return words, False


_END = re.compile(r";\s*(#.*)?\Z", re.DOTALL)
_JOINED = re.compile(r"(--[A-Za-z][\w-]*)=")
_FORMATTED = re.compile(r"([^'\"{}][^{}]*?)(![rsa])?(:[^'\"{}\s]*)?")
_NAME = re.compile(r"\$([^\W\d]\w*)")


def _word_at(line: str, at: int) -> tuple[str | Reference, int]:
    """The word that begins at `at`, and where it ends."""
    joined = _JOINED.match(line, at)
    pieces: list[str | _Braces] = []
    braces = 0
    at = joined.end() if joined else at
    while at < len(line) and not line[at].isspace() and not _END.match(line, at):
        if line[at] in "'\"":
            piece, at = _quoted(line, at)
        elif line.startswith("{{", at) or (braces and line.startswith("}}", at)):
            piece, braces, at = line[at], braces + (1 if line[at] == "{" else -1), at + 2
        elif line[at] == "{" or _NAME.match(line, at):
            piece, at = _expression(line, at)
        else:
            piece, at = line[at], at + 1
        pieces.append(piece)
    if source := _source(pieces):
        return Reference(source, joined[1] if joined else ""), at
    return (joined[0] if joined else "") + "".join(map(str, pieces)), at


class _Braces(str):
    """What is between the braces of a word: an expression, and a format if it has one."""


def _source(pieces: list[str | _Braces]) -> str:
    """The expression that a word's pieces make together; "" if all are text."""
    if not any(isinstance(piece, _Braces) for piece in pieces):
        return ""
    if len(pieces) == 1 and _is_python(pieces[0]):
        return str(pieces[0])
    escape = {"\\": "\\\\", "\n": "\\n", "{": "{{", "}": "}}"}
    inside = "".join(f"{{{piece}}}" if isinstance(piece, _Braces) else "".join(escape.get(each, each) for each in piece) for piece in pieces)
    for quote in ("'", '"', "'''", '"""'):
        if quote not in inside and _is_python(source := f"f{quote}{inside}{quote}"):
            return source
    raise KdError(f"{''.join(map(str, pieces))!r} mixes too many kinds of quotes", "give the expression a name of its own first: name = ...")


def _quoted(line: str, at: int) -> tuple[str, int]:
    close = line.find(line[at], at + 1)
    if close < 0:
        raise KdError(f"{line.strip()!r}: a quote is not closed", "close the quote, or put the word in the other kind of quotes")
    return line[at + 1 : close], close + 1


def _expression(line: str, at: int) -> tuple[_Braces, int]:
    """The reference that begins at `at`, and where it ends: at the first brace up to which it is Python."""
    if name := _NAME.match(line, at):
        return _Braces(name[1]), name.end()
    for brace in re.compile("}").finditer(line, at):
        source = line[at + 1 : brace.start()].strip()
        if _is_python(source) or _has_format(source):
            return _Braces(source), brace.end()
    raise KdError(f"{line[at:].strip()!r} is not {{a Python expression}}", "close the brace and check the expression; quote the word if it is text")


def _has_format(source: str) -> bool:
    """Whether a source is an expression with a format, as in an f-string: `i:02`, `name!r`."""
    parts = _FORMATTED.fullmatch(source)
    return parts is not None and _is_python(parts[1]) and _is_python(f"f'''{{{source}}}'''")


def _is_python(source: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def read_literal(reference: Reference) -> str | None:
    """The text of a reference whose expression is a string literal; None for any other, which needs the variables of a notebook.

    >>> read_literal(Reference("'a b'")), read_literal(Reference("net"))
    ('a b', None)
    """
    if reference.source[:1] not in ("'", '"'):
        return None
    try:
        value = ast.literal_eval(reference.source)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, str) else None


def named(value: Any) -> Any:
    """A value with the source of each expression in place of its object; items of a mapping that an expression gives are left out.

    >>> named((Reference("big"), "small")), named({Reference("bits"): None, "head": 8})
    (('big', 'small'), {'head': 8})
    """
    if isinstance(value, Mapping):
        return {name: item for name, item in value.items() if not isinstance(name, Reference)}
    return value.source if isinstance(value, Reference) else tuple(map(named, value)) if isinstance(value, tuple) else value

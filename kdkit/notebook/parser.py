"""The grammar of `%kd`, and the first pass over a line: words become values, with names and expressions left as they were written.

    %kd VERB words --options          %kd FAMILY TECHNIQUE --options          %kd                 (status)
    %%kd [name] --options             followed by one stage a line; `together:` starts a group of indented lines

The parser looks up verbs and techniques and reads their fields; it knows no verb or technique itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdkit.errors import KdError, did_you_mean
from kdkit.notebook.verb import Verb, find_verb, verbs
from kdkit.parameters.command_line import read_options
from kdkit.parameters.settings import Settings, option
from kdkit.parameters.tokenizer import scan, split
from kdkit.pipelines.text import blocks, refuse_other_name
from kdkit.plugins.manager import manager
from kdkit.stages.line_options import Line, Running
from kdkit.stages.stage import Stage


@dataclass(frozen=True)
class ParsedLine:
    """A line whose values still hold each `Reference` as written.

    Attributes:
        target: the verb or stage; `Running` for the first line of a cell.
        title: what messages call the line.
        values: the target's own options.
        running: the options of `Running`, for a stage.
        common: the options of `Line`.
        silent: the line ends with `;`.
    """

    target: type[Any]
    title: str
    values: dict[str, Any]
    running: dict[str, Any]
    common: dict[str, Any]
    silent: bool = False


@dataclass(frozen=True)
class ParsedCell:
    """A `%%kd` cell.

    Attributes:
        header: its first line.
        body: the lines below, one stage each.
        silent: the last line ends with `;`.
    """

    header: ParsedLine
    body: str
    silent: bool = False


def parse(line: str, cell: str | None = None) -> ParsedLine | ParsedCell:
    """Parse a line, or a cell with its first line.

    Raises:
        KdError: a syntax error, or an unknown verb, technique or option.

    >>> parse("distill soft --teacher {nets['big']};").values
    {'teacher': Reference(source="nets['big']", flag='')}
    """
    if (topic := help_topic(line, cell)) is not None:
        return ParsedLine(verbs()["help"], "help", {"topic": topic} if topic else {}, {}, {})
    if cell is not None:
        return ParsedCell(parse_header(line), cell, any(scan(each)[1] for each in cell.rstrip().splitlines()[-1:]))
    words, silent = scan(line)
    if not words or (isinstance(words[0], str) and words[0].startswith("-")):
        words = ["status", *words]
    if verb := find_verb(words[0]):
        return _parse(verb, words[1:], str(words[0]), silent)
    return parse_stage(words, silent)


def help_topic(line: str, cell: str | None = None) -> tuple[str, ...] | None:
    """The topic that a line or a cell asks to explain, by `--help`, `-h` or a `?` behind its words; None if it does not.

    >>> help_topic("prune channels --ratio 0.5 --help"), help_topic("prune channels?"), help_topic("prune channels")
    (('prune', 'channels'), ('prune', 'channels'), None)

    Raises:
        KdError: a syntax error.
    """
    for text in (line, *(() if cell is None else (each for block in blocks(cell) for _, each in block.lines))):
        words = split(text)
        plain = [word.rstrip("?") for word in itertools.takewhile(lambda word: isinstance(word, str) and not word.startswith("-"), words)]
        asked = plain and len(plain) == len(words) and str(words[-1]).endswith("?")
        if asked or any(isinstance(word, str) and word in ("--help", "-h") for word in words):
            return () if text is line and cell is not None else _topic_of([word for word in plain if word])
    return None


def _topic_of(words: list[str]) -> tuple[str, ...]:
    """The part of a line's first words that `help` explains: a verb, or a family and a technique."""
    if words[:1] == ["help"] and words[1:]:
        return tuple(words[1:])
    if words and find_verb(words[0]):
        return (words[0],)
    is_id = any(id.startswith(f"{words[0]}.") for id in manager().stages()) if words else False
    return tuple(words[:2] if is_id else words)


def parse_magic(text: str) -> ParsedLine | ParsedCell:
    """Parse a line or a cell that starts with its magic: `%kd undo`, or `%%kd small` and its body.

    Raises:
        KdError: see `parse`.
    """
    first, _, body = text.partition("\n")
    magic, _, line = first.partition(" ")
    return parse(line, body if magic == "%%kd" else None)


def parse_stage(words: Sequence[Any], silent: bool = False) -> ParsedLine:
    """Parse the words of a stage's line.

    Raises:
        KdError: an unknown technique or option.
    """
    return _parse(find_stage(words), words[2:], f"{words[0]} {words[1]}", silent)


def parse_step(line: str) -> ParsedLine:
    """Parse one line of a cell's body.

    Raises:
        KdError: an unknown technique or option, or an option of the whole pipeline.
    """
    words = split(line)
    parsed = _parse(find_stage(words, or_verb=False), words[2:], f"{words[0]} {words[1]}")
    if misplaced := [*parsed.running, *parsed.common]:
        raise KdError(f"{parsed.title}: {option(misplaced[0])} belongs to the whole pipeline", "write it on the %%kd line, or run the stage alone with %kd")
    return parsed


def parse_header(line: str) -> ParsedLine:
    """Parse the text after `%%kd`: an optional name, and options.

    Raises:
        KdError: an unknown option.
    """
    words = split(line)
    name = words.pop(0) if words and isinstance(words[0], str) and not words[0].startswith("-") else ""
    parsed = _parse(Running, words, "%%kd")
    return ParsedLine(Running, "%%kd", {"as_": name or None} | parsed.values, {}, parsed.common)


def _parse(target: type[Settings], words: Sequence[Any], title: str, silent: bool = False) -> ParsedLine:
    beside = (Running, Line) if issubclass(target, Stage) else (Line,)
    positional = target.positional if issubclass(target, Verb) else ()
    values = read_options(target, words, title, lambda name, word: word, beside, positional)

    def take(owner: type[Settings]) -> dict[str, Any]:
        return {name: values.pop(name) for name in list(values) if owner in beside and name in owner.model_fields and name not in target.model_fields}

    running, common = take(Running), take(Line)
    return ParsedLine(target, title, values, running, common, silent)


def find_stage(words: Sequence[Any], or_verb: bool = True) -> type[Stage]:
    """The stage that the first two words name.

    Args:
        words: of the line.
        or_verb: a verb could have been written here as well, so messages suggest verbs too.

    Raises:
        KdError: there is no such stage; hints suggest similar names and list broken plugins.
    """
    refuse_other_name(words)
    ids = manager().stages()
    families = {id.partition(".")[0] for id in ids}
    if words[0] not in families:
        known = {*families, *(verbs() if or_verb else ())}
        what = "verb or family" if or_verb else "family"
        if not or_verb and find_verb(words[0]):
            raise KdError(f"{words[0]} is not a stage", f"a %%kd cell holds one stage a line; run %kd {words[0]} in a cell of its own")
        raise KdError(f"there is no {what} {str(words[0])!r}", did_you_mean(str(words[0]), known), "%kd help lists them all", *manager().unavailable_hints())
    if len(words) < 2 or not isinstance(words[1], str) or words[1].startswith("-"):
        techniques = [id.partition(".")[2] for id in ids if id.startswith(f"{words[0]}.")]
        raise KdError(f"{words[0]}: which technique?", f"{words[0]} {' | '.join(techniques)}", f"%kd list {words[0]}")
    return manager().stage(f"{words[0]}.{words[1]}")

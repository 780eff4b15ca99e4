"""A pipeline as text: one stage a line, `together:` groups indented."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdkit.errors import KdError
from kdkit.parameters.command_line import read_options
from kdkit.parameters.tokenizer import Reference, split
from kdkit.plugins.manager import manager
from kdkit.plugins.stage_registry import other_name
from kdkit.stages.stage import Stage


@dataclass
class Block:
    """Lines of a pipeline's text that belong together, each with its number: one stage's, or those of a `together:` group."""

    together: bool
    lines: list[tuple[int, str]]


def blocks(text: str) -> list[Block]:
    """The text of a pipeline, cut where its steps begin; blank lines and comments are left out.

    >>> [(block.together, len(block.lines)) for block in blocks("prune channels  # first\\ntogether:\\n  distill soft\\n  tune finetune")]
    [(False, 1), (True, 2)]

    Raises:
        KdError: a quote or a brace is not closed.
    """
    found: list[Block] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = split(line)
        except KdError as error:
            raise KdError(f"line {number}: {error.message}", *error.hints) from error
        if words == ["together:"]:
            found.append(Block(True, []))
        elif words and found and found[-1].together and line[:1].isspace():
            found[-1].lines.append((number, line))
        elif words:
            found.append(Block(False, [(number, line)]))
    return found


def _at_line(number: int, line: str, read: Callable[[str], Stage], alone: bool) -> Stage:
    try:
        return read(line)
    except KdError as error:
        if alone:
            raise
        raise KdError(f"line {number}: {error.message}", *error.hints) from error


def refuse_other_name(words: Sequence[Any]) -> None:
    """Refuse a line that begins with a technique's other name, such as that of its paper.

    Raises:
        KdError: it does; the message says what the technique is called here, and the hint is the line.
    """
    plain = list(itertools.takewhile(lambda word: isinstance(word, str) and not word.startswith("-"), words))
    families = {id.partition(".")[0] for id in manager().stages()}
    skipped = 1 if len(plain) > 1 and plain[0] in families and f"{plain[0]}.{plain[1]}" not in manager().stages() else 0
    if plain and not skipped and plain[0] in families:
        return
    for end in range(len(plain), skipped, -1):
        name = " ".join(plain[skipped:end])
        if meant := manager().known_as(name):
            raise other_name(name, meant, " ".join(str(word) if isinstance(word, Reference) and not word.flag else _quoted(word) for word in words[end:]))


def _quoted(word: Any) -> str:
    return f"{word.flag}={word}" if isinstance(word, Reference) else shlex.quote(word)


def read_stage(words: Sequence[Any]) -> Stage:
    """A stage out of the words of its line.

    Raises:
        KdError: unknown family, technique or option, or a value out of bounds.
    """
    refuse_other_name(words)
    if len(words) < 2 or not all(isinstance(word, str) and not word.startswith("--") for word in words[:2]):
        raise KdError(f"{' '.join(map(str, words))!r} is not a stage", "write FAMILY TECHNIQUE --option value, such as prune channels --ratio 0.5", "%kd list shows them")
    made = manager().stage(f"{words[0]}.{words[1]}")
    title = f"{words[0]} {words[1]}"
    return made.build(title, read_options(made, words[2:], title))

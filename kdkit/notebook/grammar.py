"""The grammar of `%kd`: a line or a cell becomes a verb with its values.

    %kd VERB words --options          %kd FAMILY TECHNIQUE --options          %kd                 (status)
    %%kd [name] --options             followed by one stage a line; `together:` opens a group of indented lines

Nothing here knows a verb or a technique: they are looked up, and their fields say what may follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdkit.contract import Settings, Stage
from kdkit.errors import KdError, did_you_mean
from kdkit.lines import read_options, silenced, split
from kdkit.notebook.verbs import Apply, Line, Running, Status, Verb, verbs
from kdkit.pipeline import Pipeline
from kdkit.plugins import manager

if TYPE_CHECKING:
    from kdkit.notebook.desk import Desk


@dataclass(frozen=True)
class Command:
    """What a line asks for: a verb, what every line may say, and whether its output is wanted."""

    verb: Verb | Apply
    line: Line
    silent: bool = False


def read(text: str, desk: Desk) -> Command:
    """Read a line or a cell with its magic in front: `%kd undo`, or `%%kd small` with its body.

    Raises:
        KdError: it can't be read.
    """
    first, _, body = text.partition("\n")
    magic, _, line = first.partition(" ")
    return parse(line, body if magic == "%%kd" else None, desk)


def parse(line: str, cell: str | None, desk: Desk) -> Command:
    """Read a line, or a cell with its first line.

    Raises:
        KdError: it can't be read.
    """
    if cell is not None:
        return _cell(line, cell, desk)
    words, silent = split(line), silenced(line)
    if not words or (isinstance(words[0], str) and words[0].startswith("-")):
        return _verb(Status, words, desk, silent)
    if words[0] in verbs():
        return _verb(verbs()[words[0]], words[1:], desk, silent)
    return _stage(words, desk, silent)


def _verb(verb: type[Verb], words: Sequence[Any], desk: Desk, silent: bool) -> Command:
    values = read_options(verb, words, verb.word(), desk.resolver(verb, Line), (Line,), verb.places)
    common = _share(values, Line, verb)
    try:
        made = verb.build(verb.word(), values)
    except KdError as error:
        raise error.with_hints(f"like this: {verb.sample}") from error.__cause__
    return Command(made, Line.build(verb.word(), common), silent)


def _stage(words: Sequence[Any], desk: Desk, silent: bool) -> Command:
    made, title = find(words), f"{words[0]} {words[1]}"
    values = read_options(made, words[2:], title, desk.resolver(made, Running, Line), (Running, Line))
    common, running = _share(values, Line, made), _share(values, Running, made)
    pipeline = Pipeline((made.build(title, values),))
    return Command(Apply(pipeline, Running.build(title, running)), Line.build(title, common), silent)


def unresolved(words: Sequence[Any]) -> tuple[type[Stage], dict[str, Any], Running]:
    """A stage's line as (stage, values, how it is run), each `{expression}` left as the `Reference` that was written.

    Raises:
        KdError: it can't be read.
    """
    made, title = find(words), f"{words[0]} {words[1]}"
    values = read_options(made, words[2:], title, lambda name, word: word, (Running, Line))
    _share(values, Line, made)
    running = _share(values, Running, made)
    return made, values, Running.build(title, running)


def _cell(line: str, cell: str, desk: Desk) -> Command:
    running, common = header(line, desk.resolver(Running, Line))
    pipeline = Pipeline.from_lines(cell, running.as_ or "", lambda each: step(each, desk))
    return Command(Apply(pipeline, running), Line.build("%%kd", common), any(silenced(each) for each in cell.rstrip().splitlines()[-1:]))


def header(line: str, resolve: Callable[[str, Any], Any]) -> tuple[Running, dict[str, Any]]:
    """What stands behind `%%kd`: (how the pipeline is run, what every line may say).

    Raises:
        KdError: it can't be read.
    """
    words = split(line)
    name = words.pop(0) if words and isinstance(words[0], str) and not words[0].startswith("-") else ""
    values = read_options(Running, words, "%%kd", resolve, (Line,))
    common = _share(values, Line, Running)
    return Running.build("%%kd", {"as_": name or None} | values), common


def step(line: str, desk: Desk) -> Stage:
    """One line of a `%%kd` cell."""
    words = split(line)
    made = find(words, verbs_too=False)
    title = f"{words[0]} {words[1]}"
    values = read_options(made, words[2:], title, desk.resolver(made, Running, Line), (Running, Line))
    astray = [name for name in values if name not in made.model_fields]
    if astray:
        raise KdError(f"{title}: --{astray[0].rstrip('_').replace('_', '-')} belongs to the whole pipeline", "write it on the %%kd line, or run the stage alone with %kd")
    return made.build(title, values)


def find(words: Sequence[Any], verbs_too: bool = True) -> type[Stage]:
    """The stage that the first two words name.

    Raises:
        KdError: they name none; the message says what is near, and which broken plugin might have had it.
    """
    ids = manager().stages()
    families = {id.partition(".")[0] for id in ids}
    if words[0] not in families:
        known = {*families, *(verbs() if verbs_too else ())}
        what = "verb or family" if verbs_too else "family"
        if not verbs_too and words[0] in verbs():
            raise KdError(f"{words[0]} is no stage", f"a %%kd cell holds one stage a line; run %kd {words[0]} in a cell of its own")
        raise KdError(f"there is no {what} {str(words[0])!r}", did_you_mean(str(words[0]), known), "%kd help shows all there is", *manager().blame())
    if len(words) < 2 or not isinstance(words[1], str) or words[1].startswith("-"):
        techniques = [id.partition(".")[2] for id in ids if id.startswith(f"{words[0]}.")]
        raise KdError(f"{words[0]}: which technique?", f"{words[0]} {' | '.join(techniques)}", f"%kd list {words[0]}")
    return manager().stage(f"{words[0]}.{words[1]}")


def _share(values: dict[str, Any], owner: type[Settings], before: type[Settings]) -> dict[str, Any]:
    """Take out of `values` those of `owner`, save those whose name `before` has too."""
    return {name: values.pop(name) for name in list(values) if name in owner.model_fields and name not in before.model_fields}

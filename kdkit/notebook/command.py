"""Commands: a parsed line with its objects, ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kdkit.errors import KdError
from kdkit.notebook.parser import ParsedCell, ParsedLine, parse_magic, parse_step
from kdkit.notebook.resolution import resolve
from kdkit.notebook.verb import Verb
from kdkit.pipelines.pipeline import Pipeline
from kdkit.stages.line_options import Line, Running

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


class Action(Protocol):
    """The work of a line: a verb, or stages to run."""

    def run(self, workspace: Workspace) -> Any:
        """Do the work and return the result to display."""


@dataclass(frozen=True)
class Apply:
    """Run stages: the action of a FAMILY TECHNIQUE line, of a `%%kd` cell and of a recipe."""

    pipeline: Pipeline
    running: Running

    def run(self, workspace: Workspace) -> Any:
        running = self.running
        with workspace.temporary_objects(), workspace.progress() as observe:
            if running.dry_run:
                return workspace.session.plan(self.pipeline, on=running.on, observe=observe, label=running.as_ or "")
            return workspace.session.run(self.pipeline, on=running.on, label=running.as_ or "", seed=running.seed, observe=observe)


@dataclass(frozen=True)
class Command:
    """What a line asks for.

    Attributes:
        action: the work.
        line: the options that every line has.
        silent: show no output.
    """

    action: Action
    line: Line
    silent: bool = False


def read(text: str, workspace: Workspace) -> Command:
    """Read a line or a cell that starts with its magic.

    Raises:
        KdError: it can't be parsed, or names an unknown object.
    """
    return build(parse_magic(text), workspace)


def read_step(line: str, workspace: Workspace) -> Any:
    """Read one line of a cell's body: a stage.

    Raises:
        KdError: it can't be parsed, or names an unknown object.
    """
    return _target(parse_step(line), workspace)


def build(parsed: ParsedLine | ParsedCell, workspace: Workspace) -> Command:
    """The command of a parsed line or cell.

    Raises:
        KdError: it names an unknown object, or a value is not valid.
    """
    if isinstance(parsed, ParsedCell):
        return _of_cell(parsed, workspace)
    line = Line.build(parsed.title, resolve(workspace, Line, parsed.common, parsed.title))
    if issubclass(parsed.target, Verb):
        return Command(_verb(parsed, workspace), line, parsed.silent)
    running = Running.build(parsed.title, resolve(workspace, Running, parsed.running, parsed.title))
    return Command(Apply(Pipeline((_target(parsed, workspace),)), running), line, parsed.silent)


def _verb(parsed: ParsedLine, workspace: Workspace) -> Any:
    values = resolve(workspace, parsed.target, parsed.values, parsed.title)
    try:
        return parsed.target.build(parsed.title, values)
    except KdError as error:
        raise error.with_hints(f"for example: {parsed.target.example_line}") from error.__cause__


def _target(parsed: ParsedLine, workspace: Workspace) -> Any:
    return parsed.target.build(parsed.title, resolve(workspace, parsed.target, parsed.values, parsed.title))


def _of_cell(cell: ParsedCell, workspace: Workspace) -> Command:
    running = _target(cell.header, workspace)
    pipeline = Pipeline.from_lines(cell.body, running.as_ or "", lambda line: read_step(line, workspace))
    line = Line.build("%%kd", resolve(workspace, Line, cell.header.common, "%%kd"))
    return Command(Apply(pipeline, running), line, cell.silent)

"""Dispatch: execute a `%kd` line or a `%%kd` cell, and show errors as one message without a traceback."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import kdkit.notebook.verbs  # noqa: F401 - declares the verbs
from kdkit.errors import KdError
from kdkit.notebook.command import build
from kdkit.notebook.parser import parse

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


def execute(workspace: Workspace, line: str, cell: str | None, local: dict[str, Any], quiet: bool = False, debug: bool = False) -> Any:
    """Execute a line or a cell and return its result, None where it ends with `;`.

    Args:
        workspace: of the notebook.
        line: the text after `%kd` or `%%kd`.
        cell: the body of a `%%kd` cell.
        local: the caller's local variables.
        quiet: show no progress.
        debug: show an error with its full traceback.

    Raises:
        KdError: whatever went wrong; displayed without a traceback unless `debug` or `--debug` is set.
    """
    debug = debug or "--debug" in line.split()
    if workspace.last_error is not None and cell is None and line.split() == ["--debug"]:
        _set_display(workspace.last_error, workspace, full=True)
        raise workspace.last_error
    with workspace.line(local):
        try:
            command = build(parse(line, cell), workspace)
            workspace.quiet = quiet or command.line.quiet
            result = command.action.run(workspace)
            if not command.silent:
                for note in workspace.notes:
                    print(note)
        except KdError as error:
            workspace.last_error = error
            _set_display(error, workspace, full=debug)
            raise
        except KeyboardInterrupt as stop:
            _set_display(stop, workspace, full=debug)
            raise
    if command.line.o:
        workspace.shell.push({command.line.o: result})
    return None if command.silent else result


def _set_display(error: KdError | KeyboardInterrupt, workspace: Workspace, full: bool) -> None:
    """Show the error in short the first time and with its traceback from then on, which is when `%tb` asks for it."""
    times_shown = itertools.count(int(full))

    def render() -> list[str]:
        if next(times_shown) == 0:
            return type(error)._render_traceback_(error) if isinstance(error, KdError) else _interrupted(workspace)
        return workspace.shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)

    error._render_traceback_ = render  # type: ignore[method-assign, union-attr]


def _interrupted(workspace: Workspace) -> list[str]:
    session = workspace.open_session
    state = f"the session is unchanged; its head is {session.head.name}" if session else "there is no model yet"
    return [f"\x1b[1mKeyboardInterrupt\x1b[0m: interrupted; {state}", "  hint: %kd shows the status"]

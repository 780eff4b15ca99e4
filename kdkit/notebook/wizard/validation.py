"""Validation: which steps of a draft are valid in their position, before anything runs, and how to fix the others."""

from __future__ import annotations

import ast
import contextlib
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from kdkit.display.error import problem
from kdkit.errors import KdError
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.workspace import BackgroundWorkspace
from kdkit.pipelines.order import Planned

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


@dataclass(frozen=True)
class StepValidity:
    """The result for one step: the error that prevents it from running, or the steps that would run, inserted ones included."""

    found: list[Planned] | KdError

    @property
    def fits(self) -> bool:
        """Whether the step can run in its position."""
        return not isinstance(self.found, KdError)

    @property
    def html(self) -> str:
        """The result as HTML; it doesn't rely on colour alone."""
        if isinstance(self.found, KdError):
            return problem(self.found, "not valid here")
        inserted = ", ".join(step.stage.title for step in self.found if step.inserted)
        return f"<b>✓</b> fits{f', with {escape(inserted)} inserted before it' if inserted else ''}"


def validate_draft(draft: Draft, workspace: Workspace) -> list[StepValidity]:
    """The result for each step, up to the first one that can't be parsed.

    Objects of the notebook count as available, as the line that runs the draft passes them.
    """
    if workspace.open_session is None:
        return []
    for number in range(len(draft.steps)):
        try:
            Draft(draft.steps[: number + 1]).stages()
        except KdError as error:
            return [*validate_draft(Draft(draft.steps[:number], draft.start), workspace), StepValidity(error)]
    try:
        session, given = workspace.session, _objects(draft, workspace)
        return [StepValidity(found) for found in session.validate_order(draft.stages(), draft.start or None, given)]
    except KdError as error:
        return [StepValidity(error)] * len(draft.steps)


def _objects(draft: Draft, workspace: Workspace) -> dict[str, Any]:
    """The objects that the draft names and the session doesn't hold; expressions with calls are not evaluated."""
    background, found = BackgroundWorkspace(workspace), {}
    for name in draft.named() - set(workspace.session.objects):
        if not name.startswith("@") and _is_harmless(name):
            with contextlib.suppress(KdError):
                found[name] = background.value(name)
    return found


def _is_harmless(source: str) -> bool:
    """Whether evaluating an expression calls nothing.

    >>> _is_harmless("nets['big']"), _is_harmless("make()"), _is_harmless("layers=0,2")
    (True, False, False)
    """
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError):
        return False
    return not any(isinstance(node, ast.Call | ast.Await | ast.NamedExpr | ast.Yield | ast.YieldFrom) for node in ast.walk(tree))

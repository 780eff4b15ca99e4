"""Judgement: which steps of a draft can stand where they are, before anything runs, and what to do about those that can't."""

from __future__ import annotations

import ast
import contextlib
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError
from kdkit.notebook.desk import Aside
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.snippets import problem
from kdkit.pipeline import Planned

if TYPE_CHECKING:
    from kdkit.notebook.desk import Desk


@dataclass(frozen=True)
class Verdict:
    """What is said of one step: the error that keeps it from running, or the steps it would run as."""

    found: list[Planned] | KdError

    @property
    def fits(self) -> bool:
        """Whether it can run where it stands."""
        return not isinstance(self.found, KdError)

    @property
    def html(self) -> str:
        """In words, and marked by more than a colour."""
        if isinstance(self.found, KdError):
            return problem(self.found, "can't stand here")
        inserted = ", ".join(step.stage.title for step in self.found if step.inserted)
        return f"<b>✓</b> fits{f', with {escape(inserted)} inserted before it' if inserted else ''}"


def judge(draft: Draft, desk: Desk) -> list[Verdict]:
    """A verdict for each step; where a step can't be read, for that one and none behind it.

    Objects of the notebook count as given, as the line that runs the draft hands them over.
    """
    if desk.held is None:
        return []
    for number in range(len(draft.steps)):
        try:
            Draft(draft.steps[: number + 1]).stages()
        except KdError as error:
            return [*judge(Draft(draft.steps[:number], draft.start), desk), Verdict(error)]
    try:
        session, given = desk.session, _objects(draft, desk)
        return [Verdict(found) for found in session.judge(draft.stages(), draft.start or None, given)]
    except KdError as error:
        return [Verdict(error)] * len(draft.steps)


def _objects(draft: Draft, desk: Desk) -> dict[str, Any]:
    """The objects that the draft names and the session does not hold; an expression that calls something is not tried."""
    aside, found = Aside(desk), {}
    for name in draft.named() - set(desk.session.objects):
        if not name.startswith("@") and _is_harmless(name):
            with contextlib.suppress(KdError):
                found[name] = aside.value(name)
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

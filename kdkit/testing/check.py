"""Checks: each is a rule that every stage must satisfy, and a function that finds violations.

A check yields (what is wrong, name of the model where it happened), and nothing where the rule holds. Each check looks for one
kind of fault: where a fault of another kind makes its question meaningless, it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdkit.errors import KdError, describe_exception
from kdkit.guards.error_location import find_error_line
from kdkit.stages.stage import Stage
from kdkit.testing.trial import Case

Found = Iterator[tuple[str, str]]
"""(what is wrong, name of the model where it happened; empty where no model was needed)."""


@dataclass(frozen=True)
class Check:
    """One rule.

    Attributes:
        name: of the rule.
        holds: what is true of a stage that satisfies it.
        fix: how to fix a violation.
        find: yields the violations.
    """

    name: str
    holds: str
    fix: str
    find: Callable[[Case], Found]


def check(holds: str, fix: str) -> Callable[[Callable[[Case], Found]], Check]:
    """Turn a function into a check of the same name."""
    return lambda find: Check(find.__name__, holds, fix, find)


def same(one: Stage, other: Stage) -> bool:
    """Whether two stages are of one class with equal parameters."""
    return type(one) is type(other) and dict(one) == dict(other)


def first_line(error: BaseException) -> str:
    return (error.message if isinstance(error, KdError) else describe_exception(error)).partition("\n")[0]


def describe_failure(error: BaseException | None, stage: Stage) -> str:
    """An error as text, with the author's line that raised it; a `KdError` without it, since its message is for users."""
    assert error is not None
    if isinstance(error, KdError):
        return f"KdError: {error.message}"
    place = find_error_line(error, type(stage).__module__)
    return first_line(error) + (f" ({place}: {place.code})" if place else "")

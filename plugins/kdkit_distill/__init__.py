"""kdkit's distill family: a student learns from a teacher."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit import hookimpl
from kdkit.contract import Stage


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The family's techniques."""
    from kdkit_distill.response.soft import Soft

    return [Soft]

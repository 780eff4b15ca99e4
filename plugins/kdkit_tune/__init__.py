"""kdkit's tune family: training on labels."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit import Stage, hookimpl


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The techniques of the family."""
    from kdkit_tune.finetune import Finetune

    return [Finetune]

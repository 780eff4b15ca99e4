"""kdkit's tune family: training on labels."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit import hookimpl
from kdkit.contract import Stage


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The family's techniques."""
    from kdkit_tune.finetune import Finetune

    return [Finetune]

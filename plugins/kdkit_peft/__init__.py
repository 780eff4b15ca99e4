"""Parameter-efficient fine-tuning: small adapters beside weights that hold still."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit import hookimpl
from kdkit.contract import Stage


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The family's techniques."""
    from kdkit_peft.lora import Lora
    from kdkit_peft.merge import Merge

    return [Lora, Merge]

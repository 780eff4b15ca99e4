"""kdkit's own implementation of the stage protocol, and hints for common errors of stage authors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdkit.errors import read_message
from kdkit.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from kdkit.stages.context import Context
    from kdkit.stages.stage import Stage

COMMON_ERRORS = {
    "leaf Variable that requires grad": "change weight.data, or work inside with torch.no_grad()",
    "Instance is frozen": "a stage is immutable: keep intermediate results in local variables",
}
"""Part of an error's message -> what to do."""


class Protocol:
    """Apply the stage in this process, unless a plugin runs it elsewhere."""

    @hookimpl
    def kdkit_error_hints(self, error: BaseException) -> list[str]:
        return [hint for words, hint in COMMON_ERRORS.items() if words in read_message(error)]

    @hookimpl(trylast=True)
    def kdkit_run_stage(self, stage: Stage, model: Any, context: Context) -> Any:
        changed = stage.apply(model, context)
        return model if changed is None else changed

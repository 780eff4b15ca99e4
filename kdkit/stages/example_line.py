"""The example line of a stage, for help."""

from __future__ import annotations

from kdkit.parameters.settings import option
from kdkit.parameters.value_types import object_kind
from kdkit.stages.stage import Stage


def sample(stage: type[Stage]) -> str:
    """A line that runs a technique."""
    given = getattr(stage, "sample", "")
    required = [
        f"{option(name)} {'{' + object_kind(stage, name) + '}' if object_kind(stage, name) in ('model', 'data', 'function', 'object') else name.upper()}"
        for name, field in stage.model_fields.items()
        if field.is_required()
    ]
    return given or " ".join(["%kd", *stage.id.split(".", 1), *(required or _first(stage)), *stage.sample_options.split()])


def _first(stage: type[Stage]) -> list[str]:
    for name, field in stage.model_fields.items():
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            return [f"{option(name)} {field.default:g}"]
    return []

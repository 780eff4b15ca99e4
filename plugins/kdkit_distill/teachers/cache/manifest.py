"""The manifest: what a cache states about itself; of a file that is read, each field is validated."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from kdkit_distill.teachers.cache.columns import Column, Kept

FORMAT = 2
"""The number of the file's format; 1 had no checksums."""

LARGEST_BYTES = 2**22
"""Of a manifest; one with a thousand layers has 0.2 MB."""

_Text = Annotated[str, Field(max_length=1000)]
_Count = Annotated[int, Field(ge=0, lt=2**62)]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TopClasses(_Fields):
    """How many classes the kept ones are from, and the temperature of their probabilities."""

    classes: Annotated[int, Field(ge=1, lt=2**31)]
    temperature: Annotated[float, Field(gt=0)]


class Manifest(_Fields):
    """What a cache states about itself.

    Attributes:
        rows: number of different items.
        bytes: of all rows.
        items: number of items of the data that it was filled with.
        teacher: the identity of the source.
        top: (k, temperature), if only the k most probable classes are kept.
    """

    kdkit_teacher_cache: Literal[1, 2]
    rows: Annotated[int, Field(ge=1, lt=2**40)]
    bytes: _Count
    top_k: TopClasses | None
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    teacher: _Text
    task: _Text
    layers: tuple[_Text, ...]
    kept: Kept
    top: tuple[int, float] | None
    items: _Count

    @pydantic.model_validator(mode="after")
    def _check_columns(self) -> Manifest:
        names = [column.name for column in self.columns]
        needed = {"values", "indices", "tail"} if self.top_k else {"logits"}
        others = {name for name in names if not name.startswith("feature ")}
        if len(set(names)) < len(names) or others != needed:
            raise ValueError(f"columns {', '.join(names)[:200]} are not {', '.join(sorted(needed))} and features")
        for column in self.columns:
            if not (column.name == "indices") == (column.stored == "bits") == (column.bits > 0):
                raise ValueError(f"column {column.name[:200]} is stored as {column.stored} of {column.bits} bits")
            if column.width > self.bytes:
                raise ValueError(f"column {column.name[:200]} is larger than the file")
        return self

"""The schema of kd.json: how the skeleton is created, which files there are, and the stored form of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, StringConstraints, TypeAdapter

from kdkit.errors import KdError, brief
from kdkit.parameters.schema import ClassName, FileName, OpenRecord, read_as
from kdkit.storage.layout import AGAIN, HEAD, RESERVED, SCHEMA, STRUCTURE, WEIGHTS


class _File(OpenRecord):
    size: NonNegativeInt
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _ByClass(OpenRecord):
    kind: Literal["class", "user"]
    path: ClassName = Field(alias="class")


class _ByConfig(OpenRecord):
    kind: Literal["transformers"]
    path: ClassName = Field(alias="class")
    config_class: ClassName
    config: dict[str, Any]


class _ByItself(OpenRecord):
    kind: Literal["own"]
    path: ClassName = Field(alias="class")
    facts: Any


class _Encoded(OpenRecord):
    codec: str
    layers: list[str]
    options: dict[str, Any]
    tensors: dict[str, Any]


class Head(OpenRecord):
    """What kdkit itself uses of kd.json; the other fields are facts of the session."""

    path: ClassName = Field(alias="class")
    skeleton: Annotated[_ByClass | _ByConfig | _ByItself, Field(discriminator="kind")]
    environment: dict[str, str]
    files: dict[FileName, _File]
    storage: _Encoded | None = None


_HEAD = TypeAdapter(Head)


def check_head(data: Any, folder: Path) -> Head:
    """The content of a folder's kd.json, checked.

    Raises:
        KdError: kdkit did not write it, a newer kdkit did, or a field is missing or has another type; the message names the field.
    """
    path = folder / HEAD
    if not isinstance(data, Mapping) or data.get("format") != "kdkit":
        raise KdError(f"{path} was not written by kdkit", "give a folder that %kd save wrote")
    schema = data.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise KdError(f"{folder} was saved by a newer kdkit (schema {brief(schema)}; this one reads up to {SCHEMA})", "upgrade kdkit")
    lacking = [key for key in RESERVED if key not in data]
    if lacking:
        raise KdError(f"{path} lacks {', '.join(lacking)}", AGAIN)
    head = read_as(_HEAD, data, str(path), AGAIN)
    unlisted = [] if isinstance(head.skeleton, _ByItself) else [name for name in (STRUCTURE, WEIGHTS) if name not in head.files]
    if unlisted:
        raise KdError(f"{path}: files lacks {', '.join(unlisted)}", AGAIN)
    return head

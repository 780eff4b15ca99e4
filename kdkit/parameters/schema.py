"""Schemas: data that was read from a file is checked against a type, and what does not fit is one error that names file and field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from kdkit.errors import KdError, brief, printable

T = TypeVar("T")
SHOWN = 80
"""Characters of a key in a message."""
LONGEST_RULE = 200
"""Characters of what pydantic says about a value, which may quote the value."""


class Record(BaseModel):
    """A mapping with known fields: no value is converted to another type, and fields that are not declared are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=False, populate_by_name=False)


class OpenRecord(Record):
    """A record that may have more fields than those declared, such as those of a newer kdkit."""

    model_config = ConfigDict(extra="ignore")


def check_inside(name: str) -> str:
    """Check that a file name stays inside a folder, without a look at the file system.

    Raises:
        ValueError: it is absolute, has `..` or an empty part, or holds characters that no portable name has.

    >>> check_inside("parts/weights.bin")
    'parts/weights.bin'
    """
    parts = name.split("/")
    if not name or "\\" in name or ":" in name or printable(name) != name or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        raise ValueError("it should be a path inside the folder")
    return name


FileName = Annotated[str, AfterValidator(check_inside)]
"""A path inside a folder, with `/`; absolute paths and `..` are refused without a look at the file system."""

ClassName = Annotated[str, StringConstraints(pattern=r"^[\w.\-]+:[\w.<>]+$", max_length=400)]
"""A class in saved files: `module:qualname`."""


def read_as(kind: TypeAdapter[T], data: Any, place: str, *hints: str) -> T:
    """Data as a value of a type, whose constraints it fulfils.

    Args:
        place: of the data, such as the path of its file; the message begins with it.

    Raises:
        KdError: the data does not fit; the message names the first field that doesn't.

    >>> read_as(TypeAdapter(dict[str, int]), {"a": 1, "b": "x"}, "kd.json")
    Traceback (most recent call last):
    kdkit.errors.KdError: kd.json: b is 'x': it should be a valid integer
    """
    try:
        return kind.validate_python(data, strict=True)
    except ValidationError as error:
        field, found = first_problem(error)
    raise KdError(f"{place}: {field} {found}" if field else f"{place} {found}", *hints)


def first_problem(error: ValidationError) -> tuple[str, str]:
    """(field, what it is and what it should be) of the first value that does not fit."""
    problem = error.errors(include_url=False, include_context=False)[0]
    if problem["type"] == "json_invalid":
        return "", "it is not JSON"
    rule = printable(problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")[:LONGEST_RULE])
    found = "is missing" if problem["type"] == "missing" else f"is {brief(problem['input'])}: {rule[:1].lower()}{rule[1:]}"
    return field_name(problem["loc"]), found


def field_name(keys: Iterable[Any]) -> str:
    """The path to a value in nested data, in which long keys are cut.

    >>> field_name(["files", "weights.safetensors", "size"])
    'files.weights.safetensors.size'
    """
    return ".".join(printable(str(key)[:SHOWN]) for key in keys if key != "[key]")

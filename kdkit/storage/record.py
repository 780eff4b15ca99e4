"""Records in JSON that may come from a stranger: each field is validated, and the first that does not fit is named."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from kdkit.parameters.schema import first_problem

R = TypeVar("R", bound=BaseModel)


def read_record(kind: type[R], text: bytes) -> R:
    """A record from its JSON.

    Args:
        kind: a pydantic model with the fields of the record; strict, so that no value is converted to another type.
        text: the JSON, in UTF-8.

    Raises:
        ValueError: the text is not JSON, or a field does not fit; the message names the first one that doesn't, in one line.

    >>> from kdkit.parameters.schema import Record
    >>> class Pair(Record):
    ...     one: int
    ...     two: int
    >>> read_record(Pair, b'{"one": 1, "two": "x"}')
    Traceback (most recent call last):
    ValueError: two is 'x': it should be a valid integer
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(" ".join(filter(None, first_problem(error)))) from error

"""Numbers or words: the annotation of an option that takes a number, or one of a few words in its place."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal


def number_and_words(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    """The type of a number, and the words that are allowed in its place; no words where the annotation is another one. None may be allowed too.

    >>> number_and_words(float | Literal["auto"]), number_and_words(int | Literal["all"] | None), number_and_words(float | None)
    ((<class 'float'>, ('auto',)), (<class 'int'>, ('all',)), (float | None, ()))
    """
    found = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    members = [member for member in found if member is not type(None)]
    literals = [member for member in members if typing.get_origin(member) is Literal]
    words = tuple(word for literal in literals for word in typing.get_args(literal))
    numbers = [member for member in members if member in (int, float)]
    if len(members) == 2 and len(numbers) == 1 and words and all(isinstance(word, str) for word in words):
        return numbers[0], words
    return annotation, ()

"""The facts that a saved folder states about a version: how they are checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter

from kdkit.errors import KdError, printable
from kdkit.parameters.schema import OpenRecord, read_as
from kdkit.pipelines.recipe import read_header
from kdkit.session.history import checked
from kdkit.storage.layout import AGAIN


def _check_label(label: str) -> str:
    try:
        return checked(label) if label else ""
    except KdError as error:
        raise ValueError("it can be no label") from error


class SavedFacts(OpenRecord):
    """What kdkit uses of the facts; the others are kept as they are."""

    label: Annotated[str, AfterValidator(_check_label)] = ""
    notes: list[Annotated[str, AfterValidator(printable)]] = []
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    task: str | None = None


_FACTS = TypeAdapter(SavedFacts)


def read_facts(facts: Mapping[str, Any], place: str) -> SavedFacts:
    """The facts of a folder, checked; a label is checked as one that is typed.

    Args:
        place: of the folder's kd.json; begins the messages.

    Raises:
        KdError: a fact has another type, or the label can name no version; the message names it.

    >>> read_facts({"label": "slim"}, "kd.json").label
    'slim'
    """
    if "recipe" in facts:
        read_header(facts["recipe"], f"{place}: recipe")
    return read_as(_FACTS, facts, place, AGAIN)

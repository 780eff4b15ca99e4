"""Loading: a saved folder as a version, with what the folder states about it and what loading found out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from kdkit.errors import KdError, printable
from kdkit.guards import explain_error
from kdkit.session.history import Version
from kdkit.session.saved_facts import SavedFacts, read_facts
from kdkit.session.stored_form import codec_named, saved_storage, with_encoded_trait
from kdkit.storage import folder
from kdkit.storage.layout import HEAD
from kdkit.storage.output_record import compare_outputs

OUTPUTS = "outputs"
"""The fact that records a model's outputs."""


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded.

    Attributes:
        model: in eval mode.
        facts: what its folder states about it.
        known: the facts that kdkit uses, checked.
        origin: where it was loaded from, in words.
        notes: what loading found out.
    """

    model: nn.Module
    facts: Mapping[str, Any]
    known: SavedFacts
    origin: str
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its label; may be empty."""
        return self.known.label

    def describe(self, version: Version) -> Version:
        """A version of the model, with the facts."""
        storage = saved_storage(self.facts)
        traits = with_encoded_trait(version.traits, storage)
        notes = (*self.known.notes, *self.notes)
        return replace(version, origin=self.origin, facts=dict(self.facts), notes=notes, seed=self.known.seed or 0, traits=traits, storage=storage)

    @contextlib.contextmanager
    def explain_failures(self) -> Iterator[None]:
        """An error that the model raises in this block becomes one that names where it was loaded from."""
        try:
            yield
        except KdError:
            raise
        except Exception as error:  # attributes that do not fit each other make a class raise anything
            raise KdError(f"{self.origin}: the model can't be used: {explain_error(error, type(self.model).__module__)}", "save the version again") from error


def load_version(path: str | Path, skeleton: Any) -> Loaded:
    """Load what `Session.save` wrote, and compare its outputs with the recorded ones.

    Raises:
        KdError: the folder is damaged, newer, holds a pickle or a fact of another type, does not fit the skeleton, or its model can't be used.
    """
    place = f"{Path(path) / HEAD}"
    model, facts = folder.load(path, skeleton, codec_named)
    loaded = Loaded(model, facts, read_facts(facts, place), printable(f"load {path}"), ())
    with loaded.explain_failures():
        repr(model.eval())  # reads the attributes of every module
        record = facts.get(OUTPUTS)
        note = "" if record is None else compare_outputs(model, record, f"{place}: {OUTPUTS}")
    return replace(loaded, notes=(note,) if note else ())

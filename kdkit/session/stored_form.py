"""The stored form of versions: which codec a version is saved with, and when a stage drops it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from kdkit.errors import KdError
from kdkit.guards.interrupts import package_of
from kdkit.models.stored_form import Storage
from kdkit.models.traits import Trait
from kdkit.plugins.manager import manager
from kdkit.session.history import Version
from kdkit.session.verification import unchanged
from kdkit.stages.stage import Stage
from kdkit.storage import codecs
from kdkit.storage.codecs import Codec


def codec_named(name: str) -> Codec:
    """The codec of that name.

    Raises:
        KdError: no plugin contributes it, or two do.
    """
    plugin, codec = manager().offered("kdkit_codecs", name, "codec")

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        home = package_of(getattr(function, "__module__", None) or type(function).__module__)
        return lambda *given, **options: manager().guarded(f"codec {name} (of {manager().source(plugin)})", partial(function, *given, **options), home)

    return replace(codec, encode=guarded(codec.encode), decode=guarded(codec.decode))


def storage_after(stage: Stage, model: nn.Module, parent: Version) -> tuple[Storage | None, tuple[str, ...]]:
    """The storage of a stage's result, and the notes on it: the stage's own, or its parent's as long as no weight changed.

    Raises:
        KdError: the stage returned something other than a storage.
    """
    own, before = stage.storage(), parent.storage
    if own is not None and not isinstance(own, Storage):
        raise KdError(f"{stage.title}: storage() returned {type(own).__name__}", "return a kdkit.models.Storage, or None for plain tensors")
    if own is not None or before is None:
        return own, ()
    if parent.model is not None and unchanged(model, parent.model):
        return before, ()
    return None, (f"the weights are no longer stored with the codec {before.codec!r}, since {stage.title} changed them: encode them again",)


def with_encoded_trait(traits: frozenset[str], storage: Storage | None) -> frozenset[str]:
    """The traits, with `encoded` where a codec encodes weights and without it elsewhere."""
    return traits - {Trait.ENCODED} | ({Trait.ENCODED} if storage else frozenset())


def bytes_saved(model: nn.Module, storage: Storage | None) -> int:
    """How many bytes the storage saves.

    Raises:
        KdError: its codec is missing, or can't encode the model.
    """
    return 0 if storage is None else codecs.bytes_saved(model, storage, codec_named(storage.codec))


def saved_storage(facts: Mapping[str, Any]) -> Storage | None:
    """The storage of a version that was loaded with these facts."""
    return Storage.from_data(facts["storage"]) if "storage" in facts else None

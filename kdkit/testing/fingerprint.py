"""Fingerprints: hashes of all parts of a model, to find out whether and where two models differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdkit.data import Batch
from kdkit.guards.scratch import ScratchFolder
from kdkit.models.evaluation import evaluating
from kdkit.models.packed_tensors import plain_parts
from kdkit.storage.structure import HOOKS, describe, join, tensors

Fingerprint = Mapping[str, str]
"""Part of the model -> hash of its contents: {"numbers of first.weight": "9f86d0..."}."""


def fingerprint(model: nn.Module) -> Fingerprint:
    """Structure, modes, flags, hooks, gradients, weights and buffers of a model.

    >>> net = nn.Linear(2, 2)
    >>> before = fingerprint(net)
    >>> _ = net.train(False)
    >>> changes(before, fingerprint(net))
    ['mode of the model']
    """
    return dict(_places(model))


def changes(before: Fingerprint, after: Fingerprint) -> list[str]:
    """The places in which two fingerprints differ."""
    return [place for place in {**before, **after} if before.get(place) != after.get(place)]


def in_short(places: list[str], most: int = 3) -> str:
    """The first few places, and how many more there are.

    >>> in_short(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(places[:most]) + (f" and {len(places) - most} more" if len(places) > most else "")


def outputs(model: nn.Module, batch: Batch) -> list[str]:
    """Hashes of the tensors that a model returns for a batch."""
    with evaluating(model):
        return [digest(item) for item in tree_leaves(batch.call(model)) if isinstance(item, Tensor)]


def digest(tensor: Tensor) -> str:
    """Hash of a tensor: its shape, dtype and exact values."""
    hashed = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    for part in plain_parts(tensor.detach()):
        hashed.update(bytes(part.cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return hashed.hexdigest()


def _places(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        yield f"mode of {name or 'the model'}", str(module.training)
        if hooks := [len(getattr(module, kind)) for kind in HOOKS if getattr(module, kind)]:
            yield f"hooks of {name or 'the model'}", str(hooks)
        for key, weight in module._parameters.items():
            if weight is not None and weight.grad is not None:
                yield f"gradient of {join(name, key)}", digest(weight.grad)
    yield from _own_files(model) if hasattr(model, "kdkit_save") else _manifest(model)


def _manifest(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, entry in describe(model)["modules"].items():
        yield f"structure of {name or 'the model'}", _text({key: value for key, value in entry.items() if key not in ("training", "hooks")})
    for name, tensor in tensors(model).items():
        yield f"numbers of {name}", digest(tensor)


def _own_files(model: Any) -> Iterator[tuple[str, str]]:
    """For a model that saves itself instead of being made of tensors."""
    with ScratchFolder() as folder:
        yield "facts it saves", _text(model.kdkit_save(folder))
        for path in sorted(folder.rglob("*")):
            yield f"contents of {path.name}", hashlib.sha256(path.read_bytes()).hexdigest()


def _text(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

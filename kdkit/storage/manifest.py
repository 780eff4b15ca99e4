"""The schema of structure.json, and what a manifest must fulfil before anything is built from it.

The names of its modules form a tree without cycles, and each tensor has the shape and dtype of a tensor that the folder really holds. So
nothing that is allocated later exceeds the file by more than `SPREAD`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, NonNegativeInt, TypeAdapter, model_validator
from torch import Tensor

from kdkit.errors import KdError, brief
from kdkit.parameters.schema import ClassName, Record, field_name, read_as
from kdkit.storage.layout import AGAIN
from kdkit.storage.structure import HOOKS, SPREAD, Manifest, join, raise_if_any, span
from kdkit.storage.value_records import DtypeName

PACKED = 64
"""The most elements that a packed tensor may represent for each byte of its parts."""
DEEPEST = 64
"""Levels of nested modules."""
SHARED = 64
"""How often the modules of a model may be used, on average, where some are in several places."""


def _check_hooks(kind: str) -> str:
    if kind not in HOOKS:
        raise ValueError("a module has no such hooks")
    return kind


HookKind = Annotated[str, AfterValidator(_check_hooks)]


class TensorEntry(Record):
    """The entry of a parameter, a buffer, a part of a packed tensor, or a tensor in an attribute."""

    shape: list[NonNegativeInt] | None = None
    dtype: DtypeName | None = None
    grad: bool = False
    stride: list[NonNegativeInt] | None = None
    persistent: bool = True
    same: str | None = None
    shares: str | None = None
    path: ClassName | None = Field(None, alias="class")
    context: Any = None
    inner: dict[str, TensorEntry | None] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> TensorEntry:
        if (self.shape is None) != (self.dtype is None):
            raise ValueError("a tensor has a shape and a dtype")
        if self.shape is None or self.dtype is None:
            return self
        dtype = getattr(torch, self.dtype)
        if self.grad and not (dtype.is_floating_point or dtype.is_complex):
            raise ValueError(f"a tensor of {self.dtype} has no gradient")
        if self.stride is not None and len(self.stride) != len(self.shape):
            raise ValueError("a tensor has as many strides as axes")
        if self.inner is None and self.stride is not None and span(self.shape, self.stride) > max(SPREAD * math.prod(self.shape), 1):
            raise ValueError(f"its elements span more than {SPREAD} times their own memory")
        if self.inner is not None and (self.path is None or self.stride is None or "context" not in self.model_fields_set):
            raise ValueError("a packed tensor has a class, strides and a context")
        return self


class ModuleEntry(Record):
    """The entry of a module."""

    path: ClassName = Field(alias="class")
    training: bool
    children: list[str]
    attributes: dict[str, Any]
    parameters: dict[str, TensorEntry | None]
    buffers: dict[str, TensorEntry | None]
    aliases: dict[str, str | None] = {}
    hooks: dict[HookKind, list[Any]] = {}
    parametrized: list[str] = []


class _Structure(Record):
    modules: dict[str, ModuleEntry]


_STRUCTURE = TypeAdapter(_Structure)
_TENSOR = TypeAdapter(TensorEntry)


def check_manifest(data: Any, place: str) -> Manifest:
    """The content of a structure.json, checked: the types of all fields, and that the modules form a tree.

    Args:
        place: begins the messages.

    Raises:
        KdError: a field is missing or has another type, or the modules form no tree; the message names it.
    """
    modules = read_as(_STRUCTURE, data, place, AGAIN).modules
    fault = next(_tree_faults(modules), None) or _cycle(modules)
    if fault:
        raise KdError(f"{place}: {fault}", AGAIN)
    return data


def _tree_faults(modules: Mapping[str, ModuleEntry]) -> Iterator[str]:
    if "" not in modules:
        yield "modules has no root"
    for name, entry in modules.items():
        where = field_name(["modules", name])
        parent, _, key = name.rpartition(".")
        if name.count(".") >= DEEPEST:
            yield f"{where} is nested deeper than {DEEPEST} levels"
        if name and (parent not in modules or key not in modules[parent].children or key in modules[parent].aliases):
            yield f"{where} is no child of {brief(parent)}"
        for key, count in Counter([*entry.children, *entry.parameters, *entry.buffers]).items():
            if not key or "." in key or count > 1 or key in entry.attributes:
                yield f"{where}: {brief(key)} names no child and no tensor, or several"
        for key in entry.children:
            place = entry.aliases.get(key, join(name, key))
            if place is not None and place not in modules:
                yield f"{where}.children: there is no module {brief(place)}"
        if entry.aliases.keys() - {*entry.children}:
            yield f"{where}.aliases: {brief(sorted(entry.aliases.keys() - {*entry.children}))} are no children"


def _cycle(modules: Mapping[str, ModuleEntry]) -> str:
    """What is wrong with modules that contain themselves, or that are used so often that a call would not end."""
    uses: dict[str, int] = {}
    stack: list[tuple[str, bool]] = [("", False)]
    open_modules: set[str] = set()
    while stack:
        name, done = stack.pop()
        inside = [modules[name].aliases.get(key, join(name, key)) for key in modules[name].children]
        places = [place for place in inside if place is not None]
        if done:
            open_modules.discard(name)
            uses[name] = 1 + sum(uses[place] for place in places)
            continue
        if name in uses:
            continue
        if len(open_modules) > DEEPEST:
            return f"{field_name(['modules', name])} is nested deeper than {DEEPEST} levels"
        open_modules.add(name)
        stack.append((name, True))
        for place in places:
            if place in open_modules:
                return f"{field_name(['modules', name])} contains {brief(place)}, which contains it"
            if place not in uses:
                stack.append((place, False))
    most = SHARED * (len(modules) + DEEPEST)
    return f"its {len(modules)} modules are used {brief(uses[''])} times" if uses[""] > most else ""


def check_weights(manifest: Manifest, values: Mapping[str, Tensor], place: str) -> None:
    """Check that the tensors of a manifest are those of its folder, before any of them is allocated.

    Raises:
        KdError: names, shapes or dtypes differ; the message names the first few.
    """
    problems, names = [], set()
    for name, entry in _own_tensors(manifest, place):
        found = values.get(name)
        names.add(name)
        if found is None:
            problems.append(f"{name} is missing")
        elif entry.inner is None and (list(found.shape), found.dtype) != (entry.shape, getattr(torch, entry.dtype or "")):
            problems.append(f"{name} is {found.dtype} {tuple(found.shape)}, its module expects torch.{entry.dtype} {brief(tuple(entry.shape or ()))}")
    problems += [f"{name} belongs to no module" for name in values if name not in names]
    raise_if_any(problems, "the weights do not fit the structure", "weights and structure are from different saves: save the model again")


def _own_tensors(manifest: Manifest, place: str) -> Iterator[tuple[str, TensorEntry]]:
    """The tensors with memory of their own, by name."""
    for name, entry in manifest["modules"].items():
        for key, spec in (entry["parameters"] | entry["buffers"]).items():
            yield from _parts(join(name, key), spec, place)
        for code in _tensor_codes(entry):
            yield from _parts(str(code.get("name")), code["spec"], place)


def _parts(name: str, spec: Any, place: str) -> Iterator[tuple[str, TensorEntry]]:
    if spec is None:
        return
    entry = read_as(_TENSOR, spec, f"{place}: {field_name([name])}", AGAIN)
    if entry.shape is None or entry.same is not None or entry.shares is not None:
        return
    if entry.inner is None:
        yield name, entry
        return
    if math.prod(entry.shape) > PACKED * _bytes(entry):
        raise KdError(f"{place}: {field_name([name])} has more elements than its parts can hold", AGAIN)
    for key, part in spec["inner"].items():
        yield from _parts(f"{name}:{key}", part, place)


def _bytes(entry: TensorEntry | None) -> int:
    """The bytes of a tensor's numbers; of those of its parts if it is packed."""
    if entry is None or entry.shape is None:
        return 0
    return sum(map(_bytes, entry.inner.values())) if entry.inner is not None else math.prod(entry.shape) * getattr(torch, entry.dtype or "").itemsize


def _tensor_codes(code: Any) -> Iterator[dict[str, Any]]:
    """The tensors with specs in encoded values."""
    level = [code]
    while level:
        each = level.pop()
        if isinstance(each, dict):
            if each.get("$") == "tensor" and "spec" in each:
                yield each
            level += each.values()
        elif isinstance(each, list):
            level += each

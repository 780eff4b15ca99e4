"""Python values as JSON and back: what a module holds besides tensors, without pickle.

Plain values stand as themselves. What JSON lacks is tagged: `(1, 2)` is `{"$": "tuple", "items": [1, 2]}`. Configs and other plain
objects are a class path with their fields; the second mention of one is a reference to the first. What can't be data (a lambda, a lock)
is `opaque`: named, compared, and taken from the skeleton when a model is rebuilt.
"""

from __future__ import annotations

import enum
import functools
import importlib
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import KdError

SEQUENCES: Mapping[str, type] = MappingProxyType({"tuple": tuple, "set": set, "frozenset": frozenset, "size": torch.Size})
DICTS: Mapping[str, type] = MappingProxyType({"dict": dict, "ordered": OrderedDict})
FUNCTIONS = ("torch.nn.functional", "torch", "torch._C._nn")
"""Where a function is looked up by its name; nothing else is ever called by name."""
TRUSTED = ("torch", "transformers", "peft", "kdkit")
"""Packages whose classes a folder may name; those of installed kdkit plugins are added."""
DEPTH = 24
"""Deeper than this a value is taken for a structure with a cycle."""
ABSENT = object()


class _Plain:
    """Its instances hold nothing but their `__dict__`, which is how much room such an object takes."""


def path_of(kind: type) -> str:
    """A class as `module:qualname`.

    >>> path_of(nn.Linear)
    'torch.nn.modules.linear:Linear'
    """
    return f"{kind.__module__}:{kind.__qualname__}"


@functools.cache
def trusted_packages() -> frozenset[str]:
    """Top-level packages whose classes may be named in a saved folder."""
    return frozenset(TRUSTED) | {point.value.partition(":")[0].partition(".")[0] for point in entry_points(group="kdkit")}


def class_at(path: str) -> type | None:
    """The class at a `module:qualname` of an importable module, or None.

    >>> class_at("torch.nn.modules.linear:Linear")
    <class 'torch.nn.modules.linear.Linear'>
    >>> class_at("torch.serialization:os._wrap_close") is None
    True
    """
    module, _, name = path.partition(":")
    try:
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) and path_of(found) == path else None


class Classes:
    """Finds classes by path: first among those the skeleton holds, then in trusted packages.

    A class defined in a notebook or a moved module is found by its name, if the skeleton has one of that name.
    """

    def __init__(self, held: Iterable[type] = ()):
        self.held = {path_of(kind): kind for kind in held}

    def find(self, path: str) -> type | None:
        """The class, or None where there is none that may be used."""
        if path in self.held:
            return self.held[path]
        if path.partition(":")[0].partition(".")[0] in trusted_packages():
            return class_at(path)
        namesakes = [kind for other, kind in self.held.items() if other.partition(":")[2] == path.partition(":")[2]]
        return namesakes[0] if len(namesakes) == 1 else None


class Encoder:
    """Values to JSON.

    Args:
        tensor: gives the code of a tensor found at a place.
        modules: names of the model's modules, by id.
    """

    def __init__(self, tensor: Callable[[Tensor, str], Any], modules: Mapping[int, str]):
        self._tensor = tensor
        self._modules = modules
        self._places: dict[int, str] = {}

    def encode(self, value: Any, place: str, depth: int = 0) -> Any:
        """The code of `value`, which was found at `place` ("encoder.layer.0:config")."""
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if depth > DEPTH:
            return opaque(value)
        if kind is float:
            return value if math.isfinite(value) else {"$": "float", "text": repr(value)}
        if kind is list:
            return self._items(value, place, depth)
        if kind in SEQUENCES.values():
            return self._sequence(value, place, depth)
        if kind in DICTS.values():
            return self._dict(value, place, depth)
        return self._other(value, place, depth)

    def _items(self, values: Iterable[Any], place: str, depth: int) -> list[Any]:
        return [self.encode(item, f"{place}.{index}", depth + 1) for index, item in enumerate(values)]

    def _sequence(self, value: Any, place: str, depth: int) -> dict[str, Any]:
        ordered = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return {"$": next(name for name, kind in SEQUENCES.items() if kind is type(value)), "items": self._items(ordered, place, depth)}

    def _dict(self, value: Mapping[Any, Any], place: str, depth: int) -> dict[str, Any]:
        if type(value) is dict and "$" not in value and all(type(key) is str for key in value):
            return {key: self.encode(item, f"{place}.{key}", depth + 1) for key, item in value.items()}
        pairs = [[self.encode(key, f"{place}.{key}", depth + 1), self.encode(item, f"{place}.{key}", depth + 1)] for key, item in value.items()]
        return {"$": "dict" if type(value) is dict else "ordered", "items": pairs}

    def _other(self, value: Any, place: str, depth: int) -> Any:
        if isinstance(value, enum.Enum):
            return {"$": "enum", "class": path_of(type(value)), "name": value.name}
        if isinstance(value, torch.dtype | torch.device):
            return {"$": type(value).__name__, "name": str(value).removeprefix("torch.")}
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, nn.Module):
            return {"$": "module", "name": self._modules[id(value)]} if id(value) in self._modules else opaque(value)
        if isinstance(value, weakref.ref) and isinstance(value(), Tensor | nn.Module):
            return {"$": "weakref", "to": self.encode(value(), place, depth + 1)}
        if isinstance(value, type):
            return {"$": "class", "class": path_of(value)}
        return self._object(value, place, depth) if _is_plain_object(value) else _function(value) or opaque(value)

    def _object(self, value: Any, place: str, depth: int) -> dict[str, Any]:
        if id(value) in self._places:
            return {"$": "same", "place": self._places[id(value)]}
        self._places[id(value)] = place
        fields = {name: self.encode(item, f"{place}.{name}", depth + 1) for name, item in vars(value).items()}
        return {"$": "object", "class": path_of(type(value)), "fields": fields}


def opaque(value: Any) -> dict[str, str]:
    """The code of something that can't be data: its class and, for a function, its name."""
    name = getattr(value, "__qualname__", "")
    return {"$": "opaque", "class": path_of(type(value))} | ({"name": name} if isinstance(name, str) and name else {})


def _is_plain_object(value: Any) -> bool:
    """Whether all its state is its `__dict__`: no slots, no C fields."""
    kind = type(value)
    return hasattr(value, "__dict__") and kind.__basicsize__ <= _Plain.__basicsize__


def _function(value: Any) -> dict[str, str] | None:
    name = getattr(value, "__name__", None)
    if not callable(value) or not isinstance(name, str):
        return None
    home = next((home for home in FUNCTIONS if getattr(importlib.import_module(home), name, None) is value), None)
    return {"$": "function", "home": home, "name": name} if home else None


class Decoder:
    """JSON to values.

    Args:
        classes: finds the classes that may be named.
        tensor: gives the tensor of a tensor's code.
        modules: the model's modules by name.

    Attributes:
        problems: places that hold something which can't be made from data and is not in the skeleton.
    """

    def __init__(self, classes: Classes, tensor: Callable[[Mapping[str, Any]], Tensor], modules: Mapping[str, nn.Module]):
        self._classes = classes
        self._tensor = tensor
        self._modules = modules
        self._places: dict[str, Any] = {}
        self.problems: list[str] = []

    def decode(self, code: Any, existing: Any, place: str) -> Any:
        """The value of `code`; `existing` is what the skeleton has there, or `ABSENT`."""
        if isinstance(code, list):
            return [self.decode(item, _part(existing, index), f"{place}.{index}") for index, item in enumerate(code)]
        if not isinstance(code, dict):
            return code
        kind = code.get("$")
        if kind is None:
            return {key: self.decode(item, _part(existing, key), f"{place}.{key}") for key, item in code.items()}
        if kind in SEQUENCES:
            return SEQUENCES[kind](self.decode(code["items"], existing, place))
        if kind in DICTS:
            return DICTS[kind](self._pairs(code["items"], existing, place))
        decode = self._decoders.get(kind)
        if decode is None:
            raise KdError(f"{place} holds a {kind!r}, which this kdkit does not know", "it was saved by a newer kdkit: upgrade kdkit")
        return decode(self, code, existing, place)

    def _pairs(self, items: Iterable[Any], existing: Any, place: str) -> Iterator[tuple[Any, Any]]:
        for code, item in items:
            key = self.decode(code, ABSENT, place)
            yield key, self.decode(item, _part(existing, key), f"{place}.{key}")

    def _float(self, code: Mapping[str, Any], existing: Any, place: str) -> float:
        return float(code["text"])

    def _same(self, code: Mapping[str, Any], existing: Any, place: str) -> Any:
        return self._places[code["place"]]

    def _enum(self, code: Mapping[str, Any], existing: Any, place: str) -> Any:
        kind = self._class(code, existing, place)
        return kind[code["name"]] if isinstance(kind, enum.EnumMeta) else None

    def _dtype(self, code: Mapping[str, Any], existing: Any, place: str) -> torch.dtype:
        return dtype_named(code["name"])

    def _device(self, code: Mapping[str, Any], existing: Any, place: str) -> torch.device:
        return torch.device(code["name"])

    def _tensor_of(self, code: Mapping[str, Any], existing: Any, place: str) -> Tensor:
        return self._tensor(code)

    def _module(self, code: Mapping[str, Any], existing: Any, place: str) -> nn.Module:
        return self._modules[code["name"]]

    def _weakref(self, code: Mapping[str, Any], existing: Any, place: str) -> weakref.ref:
        return weakref.ref(self.decode(code["to"], ABSENT, place))

    def _class(self, code: Mapping[str, Any], existing: Any, place: str) -> type | None:
        held = {path_of(kind): kind for kind in (existing, type(existing)) if isinstance(kind, type)}
        kind = held.get(code["class"]) or self._classes.find(code["class"])
        if kind is None:
            self._problem(code, place)
        return kind

    def _function(self, code: Mapping[str, Any], existing: Any, place: str) -> Any:
        found = getattr(importlib.import_module(code["home"]), code["name"], None) if code["home"] in FUNCTIONS else None
        if found is None:
            self._problem({"class": "function", **code}, place)
        return found

    def _opaque(self, code: Mapping[str, Any], existing: Any, place: str) -> Any:
        if existing is not ABSENT and opaque(existing) == code:
            return existing
        self._problem(code, place)
        return None

    def _object(self, code: Mapping[str, Any], existing: Any, place: str) -> Any:
        kind = self._class(code, existing, place)
        if kind is None:
            return None
        value = existing if type(existing) is kind else object.__new__(kind)
        self._places[place] = value
        fields = {name: self.decode(item, vars(value).get(name, ABSENT), f"{place}.{name}") for name, item in code["fields"].items()}
        vars(value).update(fields)
        return value

    def _problem(self, code: Mapping[str, Any], place: str) -> None:
        self.problems.append(f"{place} is a {' '.join(filter(None, (code['class'].partition(':')[2] or code['class'], code.get('name'))))}")

    _decoders = {
        "float": _float, "same": _same, "enum": _enum, "dtype": _dtype, "device": _device, "tensor": _tensor_of, "module": _module,
        "weakref": _weakref, "class": _class, "function": _function, "opaque": _opaque, "object": _object,
    }  # fmt: skip


def dtype_named(name: str) -> torch.dtype:
    """A dtype by its name.

    >>> dtype_named("bfloat16")
    torch.bfloat16
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise KdError(f"this torch has no dtype {name!r}", "it was saved with another torch: see `environment` in kd.json")
    return found


def _part(existing: Any, key: Any) -> Any:
    try:
        return existing[key] if isinstance(existing, list | tuple | dict) else ABSENT
    except (IndexError, KeyError):
        return ABSENT

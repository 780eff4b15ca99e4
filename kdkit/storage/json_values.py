"""Python values as JSON and back, without pickle: the attributes of modules that are not tensors.

Plain values are written unchanged. A type that JSON lacks is tagged: `(1, 2)` is `{"$": "tuple", "items": [1, 2]}`. Configs and other
plain objects are written as a class path with fields; a second occurrence is a reference to the first. Which classes may be named and made
is decided by `kdkit.storage.value_kinds`, the fields of each tagged form by `kdkit.storage.value_records`. A value that can't be data
(a lambda, a lock) is written as `opaque`, with its class, its name and a fingerprint of what it holds; when a model is rebuilt, it is taken
from the skeleton if that has the same.
"""

from __future__ import annotations

import base64
import enum
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from kdkit.errors import KdError, brief
from kdkit.parameters.schema import read_as
from kdkit.storage import value_records as records
from kdkit.storage.fingerprint import fingerprint
from kdkit.storage.layout import AGAIN
from kdkit.storage.trusted_classes import Classes, canonical, path_of
from kdkit.storage.value_kinds import HOMES, check_field, function_named, holds_only_fields, is_inert, is_nameable, is_plain_data

SEQUENCES: Mapping[str, type] = MappingProxyType({"tuple": tuple, "set": set, "frozenset": frozenset, "size": torch.Size})
DICTS: Mapping[str, type] = MappingProxyType({"dict": dict, "ordered": OrderedDict})
DEPTH = 24
"""A value nested deeper than this is assumed to contain a cycle."""
MISSING = object()


class Encoder:
    """Values to JSON.

    Args:
        tensor: (tensor, place) -> the JSON of a tensor.
        modules: names of the model's modules, by id.
    """

    def __init__(self, tensor: Callable[[Tensor, str], Any], modules: Mapping[int, str]):
        self._tensor = tensor
        self._modules = modules
        self._places: dict[int, str] = {}

    def encode(self, value: Any, place: str, depth: int = 0) -> Any:
        """The JSON of `value` at `place`, such as "encoder.layer.0:config"."""
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if depth > DEPTH:
            return encode_opaque(value)
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
            return {"$": "module", "name": self._modules[id(value)]} if id(value) in self._modules else encode_opaque(value)
        if isinstance(value, weakref.ref) and isinstance(value(), Tensor | nn.Module):
            return {"$": "weakref", "to": self.encode(value(), place, depth + 1)}
        if isinstance(value, type):
            return {"$": "class", "class": path_of(value)}
        if (scalar := _scalar(value)) is not None:
            return scalar
        if isinstance(value, slice):
            return {"$": "slice", "items": self._items((value.start, value.stop, value.step), place, depth)}
        fields_only = holds_only_fields(type(value)) and is_inert(type(value))
        return self._object(value, place, depth) if fields_only else _function(value) or encode_opaque(value)

    def _object(self, value: Any, place: str, depth: int) -> dict[str, Any]:
        if id(value) in self._places:
            return {"$": "same", "place": self._places[id(value)]}
        self._places[id(value)] = place
        fields = {name: self.encode(item, f"{place}.{name}", depth + 1) for name, item in vars(value).items()}
        return {"$": "object", "class": path_of(type(value)), "fields": fields}


def encode_opaque(value: Any) -> dict[str, str]:
    """The JSON of a value that can't be data: its class, for a function its name, and the fingerprint of what it holds."""
    name, held = getattr(value, "__qualname__", ""), fingerprint(value)
    return {"$": "opaque", "class": path_of(type(value))} | ({"name": name} if isinstance(name, str) and name else {}) | ({"holds": held} if held else {})


def _scalar(value: Any) -> dict[str, Any] | None:
    """The JSON of a value of a type that is one number, text or path; None for other values."""
    kind = type(value)
    if kind is complex:
        return {"$": "complex", "parts": [repr(value.real), repr(value.imag)]}
    if kind is bytes:
        return {"$": "bytes", "base64": base64.b64encode(value).decode()}
    if kind is range and max(abs(value.start), abs(value.stop), abs(value.step)) < 2**63:
        return {"$": "range", "items": [value.start, value.stop, value.step]}
    if kind is type(Path()):
        return {"$": "path", "text": str(value)}
    if isinstance(value, np.number | np.bool_) and value.dtype.str in records.NUMPY:
        return {"$": "numpy", "dtype": value.dtype.str, "base64": base64.b64encode(value.tobytes()).decode()}
    return None


def _function(value: Any) -> dict[str, str] | None:
    name = getattr(value, "__name__", None)
    if not callable(value) or not isinstance(name, str):
        return None
    home = next((home for home in HOMES if function_named(home, name) is value), None)
    return {"$": "function", "home": home, "name": name} if home else None


class Decoder:
    """JSON to values.

    Args:
        classes: finds the classes that a folder may name.
        tensor: (name, entry or None, place) -> the tensor of that name.
        modules: the model's modules by name.

    Attributes:
        problems: places with a value that can't be made from data, and that the skeleton lacks or has another value for.
        unchecked: places with a value of the skeleton that could not be compared, as an earlier kdkit wrote the folder.
    """

    def __init__(self, classes: Classes, tensor: Callable[[str, dict[str, Any] | None, str], Tensor], modules: Mapping[str, nn.Module]):
        self._classes = classes
        self._tensor = tensor
        self._modules = modules
        self._places: dict[str, Any] = {}
        self._open: set[str] = set()
        self.problems: list[str] = []
        self.unchecked: list[str] = []

    def decode(self, code: Any, existing: Any, place: str) -> Any:
        """The value of the JSON `code`; `existing` is the skeleton's value at that place, or `MISSING`.

        Raises:
            KdError: the code has no form that `Encoder` writes, or names something that a file may not name.
        """
        if isinstance(code, list):
            return [self.decode(item, _part(existing, index), f"{place}.{index}") for index, item in enumerate(code)]
        if not isinstance(code, dict):
            return code
        kind = code.get("$")
        if kind is None:
            return {key: self.decode(item, _part(existing, key), f"{place}.{key}") for key, item in code.items()}
        schema, decode = self._kinds.get(kind, (None, None)) if isinstance(kind, str) else (None, None)
        if schema is None or decode is None:
            raise KdError(f"{place} holds a {brief(kind)}, which this kdkit does not know", "it was saved by a newer kdkit: upgrade kdkit")
        return decode(self, read_as(schema, code, place, AGAIN), existing, place)

    def _sequence(self, code: records.Items, existing: Any, place: str) -> Any:
        items = self.decode(code.items, existing, place)
        if code.kind in ("set", "frozenset"):
            self._check_keys(items, place)
        if code.kind == "size" and not all(type(item) is int for item in items):
            raise KdError(f"{place} holds {brief(items)}, which is no shape", AGAIN)
        return SEQUENCES[code.kind](items)

    def _mapping(self, code: records.Pairs, existing: Any, place: str) -> Any:
        keys = [self.decode(key, MISSING, place) for key, _ in code.items]
        self._check_keys(keys, place)
        return DICTS[code.kind]((key, self.decode(item, _part(existing, key), f"{place}.{key}")) for key, (_, item) in zip(keys, code.items, strict=True))

    def _check_keys(self, keys: Iterable[Any], place: str) -> None:
        for key in keys:
            if not _is_key(key):
                raise KdError(f"{place} holds {brief(key)}, which can be no key and no member of a set", AGAIN)

    def _float(self, code: records.Float, existing: Any, place: str) -> float:
        return float(code.text)

    def _complex(self, code: records.Complex, existing: Any, place: str) -> complex:
        return complex(*map(float, code.parts))

    def _bytes(self, code: records.Bytes, existing: Any, place: str) -> bytes:
        return records.decode_base64(code.base64)

    def _numpy(self, code: records.Numpy, existing: Any, place: str) -> Any:
        return np.frombuffer(records.decode_base64(code.base64), code.dtype)[0]

    def _range(self, code: records.Range, existing: Any, place: str) -> range:
        return range(*code.items)

    def _path(self, code: records.Path, existing: Any, place: str) -> Path:
        return Path(code.text)

    def _slice(self, code: records.Slice, existing: Any, place: str) -> slice:
        return slice(*code.items)

    def _same(self, code: records.Place, existing: Any, place: str) -> Any:
        found = self._places.get(code.place, MISSING)
        if found is MISSING or (code.place in self._open and found is not existing):
            raise KdError(f"{place} refers to {brief(code.place)}, which is no value before it", AGAIN)
        return found

    def _enum(self, code: records.Member, existing: Any, place: str) -> Any:
        kind = self._find(code, existing, place)
        if kind is None:
            return None
        if not isinstance(kind, enum.EnumMeta) or code.name not in kind.__members__:
            raise KdError(f"{place}: {code.path} has no member {brief(code.name)}", AGAIN)
        return kind.__members__[code.name]

    def _dtype(self, code: records.Dtype, existing: Any, place: str) -> torch.dtype:
        return dtype_named(code.name)

    def _device(self, code: records.Device, existing: Any, place: str) -> torch.device:
        return torch.device(code.name)

    def _tensor_of(self, code: records.Tensor, existing: Any, place: str) -> Tensor:
        return self._tensor(code.name, code.spec, place)

    def _module(self, code: records.Named, existing: Any, place: str) -> nn.Module:
        if code.name not in self._modules:
            raise KdError(f"{place} refers to {brief(code.name)}, which is no module of the model", AGAIN)
        return self._modules[code.name]

    def _weakref(self, code: records.Weak, existing: Any, place: str) -> weakref.ref:
        target = self.decode(code.to, MISSING, place)
        if not isinstance(target, Tensor | nn.Module):
            raise KdError(f"{place} refers to {brief(target)}, which is no module and no tensor", AGAIN)
        return weakref.ref(target)

    def _class(self, code: records.Class, existing: Any, place: str) -> type | None:
        kind = self._find(code, existing, place)
        if kind is not None and kind is not existing and not is_nameable(kind):
            self._problem(code.path, "", place)
            return None
        return kind

    def _find(self, code: records.Class, existing: Any, place: str) -> type | None:
        held = {path_of(kind): kind for kind in (existing, type(existing)) if isinstance(kind, type)}
        kind = held.get(canonical(code.path)) or self._classes.find(code.path)
        if kind is None:
            self._problem(code.path, "", place)
        return kind

    def _function(self, code: records.Function, existing: Any, place: str) -> Any:
        found = function_named(code.home, code.name)
        if found is None:
            self._problem("function", code.name, place)
        return found

    def _opaque(self, code: records.Opaque, existing: Any, place: str) -> Any:
        found = encode_opaque(existing) if existing is not MISSING else {}
        held = found.get("holds", "")
        if (canonical(code.path), code.name) != (found.get("class"), found.get("name", "")):
            self._problem(code.path, code.name, place)
            return None
        if code.holds and code.holds != held:
            self._problem(code.path, f"{code.name} that holds something else in the skeleton".strip(), place)
            return None
        if held and not code.holds:
            self.unchecked.append(place)
        return existing

    def _object(self, code: records.Object, existing: Any, place: str) -> Any:
        kind = self._find(code, existing, place)
        if kind is None:
            return None
        own = type(existing) is kind
        if not (holds_only_fields(kind) and is_inert(kind)) or not (own or is_plain_data(kind) or self._classes.holds(kind)):
            self._problem(code.path, "", place)
            return None
        value = existing if own else object.__new__(kind)
        self._places[place] = value
        self._open.add(place)
        fields = {name: self._field(value, name, item, f"{place}.{name}") for name, item in code.fields.items()}
        self._open.discard(place)
        vars(value).update(fields)
        return value

    def _field(self, value: Any, name: str, code: Any, place: str) -> Any:
        existing = vars(value).get(name, MISSING)
        found = self.decode(code, existing, place)
        check_field(type(value), name, found, existing, place)
        return found

    def _problem(self, path: str, name: str, place: str) -> None:
        self.problems.append(f"{place} is a {' '.join(filter(None, (path.partition(':')[2] or path, name)))}")

    _kinds: ClassVar[Mapping[str, tuple[TypeAdapter[Any], Callable[..., Any]]]] = {
        **dict.fromkeys(SEQUENCES, (TypeAdapter(records.Items), _sequence)), **dict.fromkeys(DICTS, (TypeAdapter(records.Pairs), _mapping)),
        "float": (TypeAdapter(records.Float), _float), "slice": (TypeAdapter(records.Slice), _slice), "complex": (TypeAdapter(records.Complex), _complex),
        "bytes": (TypeAdapter(records.Bytes), _bytes), "numpy": (TypeAdapter(records.Numpy), _numpy), "range": (TypeAdapter(records.Range), _range),
        "path": (TypeAdapter(records.Path), _path),
        "same": (TypeAdapter(records.Place), _same), "enum": (TypeAdapter(records.Member), _enum),
        "dtype": (TypeAdapter(records.Dtype), _dtype), "device": (TypeAdapter(records.Device), _device), "tensor": (TypeAdapter(records.Tensor), _tensor_of),
        "module": (TypeAdapter(records.Named), _module), "weakref": (TypeAdapter(records.Weak), _weakref), "class": (TypeAdapter(records.Class), _class),
        "function": (TypeAdapter(records.Function), _function), "opaque": (TypeAdapter(records.Opaque), _opaque), "object": (TypeAdapter(records.Object), _object),
    }  # fmt: skip


def _is_key(value: Any) -> bool:
    """Whether a value can be a key without a method of a class of the file running."""
    if isinstance(value, tuple | frozenset):
        return all(map(_is_key, value))
    plain = value is None or isinstance(value, str | int | float | torch.dtype | torch.device | enum.Enum | type)
    return plain or type(value).__hash__ is object.__hash__


def dtype_named(name: str) -> torch.dtype:
    """The dtype with that name.

    >>> dtype_named("bfloat16")
    torch.bfloat16
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise KdError(f"this torch has no dtype {name!r}", "it was saved with another torch: see `environment` in kd.json")
    return found


def _part(existing: Any, key: Any) -> Any:
    try:
        return existing[key] if isinstance(existing, list | tuple | dict) else MISSING
    except (IndexError, KeyError):
        return MISSING

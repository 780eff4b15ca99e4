"""The signature of a model as plain data: its inputs and the structure of its output. An exported graph keeps it."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
from pydantic import Field, StringConstraints, TypeAdapter
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError, did_you_mean
from kdkit.parameters.schema import OpenRecord, Record, read_as

_DEFAULTS = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like, "position_ids": lambda ids: torch.arange(ids.shape[1]).expand(ids.shape)}
"""The defaults of transformers for a missing input, computed from the ids."""

_OUTPUT_MODULES = re.compile(r"transformers\.(modeling_outputs|models\.\w+\.modeling_\w+)")
"""Modules of transformers that define classes of outputs; no other module is imported for a name in a file."""

_SWITCHES = ("return_dict", "use_cache")
"""Options that change the structure of an output, not its values."""


class _Facts(OpenRecord):
    parameters: list[str] | tuple[str, ...]
    inputs: list[str] | tuple[str, ...]
    unused: list[str] | tuple[str, ...]
    constants: dict[str, bool | int | float | str | None]
    output: Any
    fixed: dict[str, dict[Annotated[str, StringConstraints(pattern=r"^\d$")], Annotated[int, Field(gt=0)]]] = {}


_FACTS = TypeAdapter(_Facts)


class _Output(Record):
    output: str
    items: dict[str, Any]


class _Dict(Record):
    dict_: dict[str, Any] = Field(alias="dict")


class _Tuple(Record):
    tuple_: list[Any] = Field(alias="tuple")


class _List(Record):
    list_: list[Any] = Field(alias="list")


_TREE: TypeAdapter[Any] = TypeAdapter(None | Annotated[int, Field(ge=0)] | _Output | _Dict | _Tuple | _List)


def _check_tree(tree: Any) -> None:
    """Check that an output has a structure that `describe_output` returns."""
    node = read_as(_TREE, tree, "the signature's output")
    inside = node.model_dump() if isinstance(node, Record) else {}
    for part in inside.values():
        for item in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            _check_tree(item)


@dataclass(frozen=True)
class Signature:
    """The inputs and the output of a model.

    Attributes:
        parameters: names of the positional parameters, in order.
        inputs: names of the inputs of the exported graph, in its order.
        unused: names of inputs that do not influence the output.
        constants: inputs that are plain values and became part of the graph, by name.
        output: the structure of the output, as `describe_output` returns it.
        fixed: input -> axis -> the only size that the graph accepts, though the model accepts others.
    """

    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    unused: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    output: Any = 0
    fixed: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """A line on the axes that the export fixed; empty if there are none."""
        images = {name: " x ".join(map(str, sizes.values())) for name, sizes in self.fixed.items() if 3 in sizes}
        axes = [f"axis {axis} of {name} at {size}" for name, sizes in self.fixed.items() if name not in images for axis, size in sizes.items()]
        lines = [f"the export fixed {', '.join(axes)}: forward loops over it, or depends on its size, in a way that a graph can't follow"] if axes else []
        lines += [f"the export fixed {', '.join(f'{name} at {size}' for name, size in images.items())}: images keep the size of the example"] if images else []
        return "; ".join(lines)

    @classmethod
    def of(cls, model: nn.Module, batch: Batch, output: Any) -> Signature:
        """The signature of `model` when it is called with `batch`.

        Raises:
            KdError: an input or the output is neither a tensor nor plain data.
        """
        parameters = tuple(_positional(model, len(batch.args)))
        given = dict(zip(parameters, batch.args, strict=False)) | dict(batch.kwargs)
        odd = [name for name, value in given.items() if not isinstance(value, Tensor | bool | int | float | str | None)]
        if odd:
            raise KdError(
                f"input {odd[0]} of {type(model).__name__} is a {type(given[odd[0]]).__name__}",
                "only tensors, and plain values that never change, can be inputs of an exported model",
            )
        constants = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
        return cls(parameters, tuple(name for name in given if name not in constants), (), constants, describe_output(output)[0])

    def tensors(self, batch: Batch) -> dict[str, Tensor]:
        """The inputs of the graph in a batch, by name."""
        given = dict(zip(self.parameters, batch.args, strict=False)) | dict(batch.kwargs)
        return {name: given[name] for name in (*self.inputs, *self.unused) if name in given}

    def with_tensors(self, batch: Batch, changed: Mapping[str, Tensor]) -> Batch:
        """A batch with other inputs under these names."""
        args = tuple(changed.get(name, value) for name, value in zip(self.parameters, batch.args, strict=False))
        return replace(batch, args=args, kwargs={name: changed.get(name, value) for name, value in batch.kwargs.items()})

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The graph's inputs from the arguments of a call.

        Raises:
            KdError: an input is missing, given twice, or unknown.
        """
        if len(args) > len(self.parameters):
            raise KdError(f"{len(args)} positional inputs, and the model has {len(self.parameters)}: {', '.join(self.parameters)}")
        given = dict(zip(self.parameters, args, strict=False))
        twice = given.keys() & kwargs.keys()
        if twice:
            raise KdError(f"input {sorted(twice)[0]} is given twice, by position and by name")
        given |= kwargs
        for name in given.keys() - set(self.inputs):
            self._check_spare(name, given)
        return {name: self._input(name, given) for name in self.inputs}

    def _check_spare(self, name: str, given: Mapping[str, Any]) -> None:
        value = given[name]
        harmless = value is None or value is False or name in _SWITCHES or name in self.unused
        if harmless or (not isinstance(value, Tensor) and name in self.constants and self.constants[name] == value):
            return
        if isinstance(value, Tensor) and name in _DEFAULTS and torch.equal(value, _DEFAULTS[name](_ids(given)).to(value.dtype)):
            return
        raise KdError(
            f"{name} is no input of this onnxruntime version; it takes {', '.join(self.inputs)}",
            did_you_mean(name, self.inputs),
            f"to have {name} as an input, convert with an example batch that contains it",
        )

    def _input(self, name: str, given: Mapping[str, Any]) -> Tensor:
        value = given.get(name)
        if isinstance(value, Tensor):
            return value
        if value is None and name in _DEFAULTS and isinstance(given.get("input_ids"), Tensor):
            return _DEFAULTS[name](given["input_ids"])
        if value is None:
            raise KdError(f"input {name} is missing; the model takes {', '.join(self.inputs)}")
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise KdError(f"input {name} is a {type(value).__name__}, not a tensor") from error

    def facts(self) -> dict[str, Any]:
        """The signature as JSON."""
        return asdict(self) | {"fixed": {name: {str(axis): size for axis, size in sizes.items()} for name, sizes in self.fixed.items()}}

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Signature:
        """The signature that `facts` returned.

        Raises:
            KdError: a fact is missing or has another type; the message names it.

        >>> Signature.read(Signature(("x",), ("x",)).facts()) == Signature(("x",), ("x",))
        True
        """
        known = read_as(_FACTS, facts, "the signature")
        _check_tree(known.output)
        fixed = {name: {int(axis): size for axis, size in sizes.items()} for name, sizes in known.fixed.items()}
        return cls(tuple(known.parameters), tuple(known.inputs), tuple(known.unused), known.constants, known.output, fixed)


def _ids(given: Mapping[str, Any]) -> Tensor:
    ids = given.get("input_ids")
    return ids if isinstance(ids, Tensor) else torch.zeros(1, 0, dtype=torch.long)


def _positional(model: nn.Module, given: int) -> Iterator[str]:
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            yield parameter.name
            given -= 1
        elif parameter.kind is parameter.VAR_POSITIONAL:
            yield from (f"{parameter.name}_{index}" for index in range(given))


def describe_output(output: Any) -> tuple[Any, list[Tensor]]:
    """An output as a JSON tree whose leaves are indices of tensors, and the list of these tensors.

    Caches and other values that are not tensors are omitted from HF outputs.

    >>> describe_output((torch.zeros(1), {"a": torch.ones(1)}))
    ({'tuple': [0, {'dict': {'a': 1}}]}, [tensor([0.]), tensor([1.])])

    Raises:
        KdError: the output contains something that a graph can't return.
    """
    tensors: list[Tensor] = []

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return len(tensors) - 1
        if value is None:
            return None
        if isinstance(value, tuple | list):
            return {"list" if isinstance(value, list) else "tuple": [walk(item) for item in value]}
        if isinstance(value, Mapping) and hasattr(value, "to_tuple"):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            return {"output": kind, "items": {key: walk(item) for key, item in value.items() if isinstance(item, Tensor | tuple | list)}}
        if isinstance(value, Mapping):
            return {"dict": {str(key): walk(item) for key, item in value.items()}}
        raise KdError(f"the model's output holds a {type(value).__name__}", "an exported model can return tensors, and tuples, lists and dicts of them")

    tree = walk(output)
    if not tensors:
        raise KdError("the model's output holds no tensor")
    return tree, tensors


def name_outputs(output: Any) -> list[str]:
    """A name for each tensor of an output, in the order of `describe_output`: the keys that lead to it, "output" where it has none.

    >>> name_outputs({"logits": torch.zeros(1), "boxes": (torch.zeros(1), torch.ones(1))})
    ['logits', 'boxes_0', 'boxes_1']
    >>> name_outputs((torch.zeros(1), torch.ones(1)))
    ['output_0', 'output_1']
    """
    tree = describe_output(output)[0]
    names: list[str] = []

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, int):
            name = "_".join(path if path and not path[0].isdigit() else ("output", *path))
            names.append(name if name not in names else f"{name}_{len(names)}")
        elif value is not None:
            for key, item in _items(value):
                walk(item, (*path, key))

    walk(tree, ())
    return names


def _items(node: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The children of a node of a tree, by key or position."""
    children = node.get("items", node.get("dict", node.get("tuple", node.get("list"))))
    return list(children.items()) if isinstance(children, Mapping) else [(str(index), item) for index, item in enumerate(children or ())]


def build_output(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """An output with the structure that `describe_output` returned, from other tensors.

    >>> build_output({'tuple': [0, None]}, [torch.zeros(1)])
    (tensor([0.]), None)
    """
    if tree is None:
        return None
    if isinstance(tree, int):
        return tensors[tree]
    if "output" in tree:
        return _output_class(tree["output"])(**{key: build_output(item, tensors) for key, item in tree["items"].items()})
    if "dict" in tree:
        return {key: build_output(item, tensors) for key, item in tree["dict"].items()}
    built = [build_output(item, tensors) for item in tree.get("tuple", tree.get("list"))]
    return built if "list" in tree else tuple(built)


def count_outputs(tree: Any) -> int:
    """How many tensors an output is built from.

    >>> count_outputs({'tuple': [0, {'dict': {'a': 1}}]})
    2
    """
    if not isinstance(tree, Mapping):
        return 0 if tree is None else tree + 1
    parts = next(part for key, part in tree.items() if key != "output")
    return max(map(count_outputs, parts.values() if isinstance(parts, Mapping) else parts), default=0)


def _output_class(path: str) -> type:
    """The HF output class at that path; for a class outside transformers, their common base class."""
    from transformers.utils import ModelOutput

    module, _, name = path.rpartition(".")
    if _OUTPUT_MODULES.fullmatch(module):
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, ModelOutput):
            return found
    return ModelOutput

"""How a model is called and what it gives, as plain data: an exported graph is called like the model it came from."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError, did_you_mean

_DEFAULTS = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like, "position_ids": lambda ids: torch.arange(ids.shape[1]).expand(ids.shape)}
"""What transformers take for an input that is not given, made from the ids."""

_SWITCHES = ("return_dict", "use_cache")
"""Switches that change the packaging of an output, not its figures."""


@dataclass(frozen=True)
class Signature:
    """The call of a model.

    Attributes:
        parameters: names of the positional parameters, in order.
        inputs: the ones that are tensors of the exported graph, by name, in the graph's order.
        unused: the ones that were given and have no influence.
        constants: plain values that were given and are part of the graph.
        output: the structure of the output, as `describe_output` writes it.
    """

    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    unused: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    output: Any = 0

    @classmethod
    def of(cls, model: nn.Module, batch: Batch, output: Any) -> Signature:
        """The signature of `model` as `batch` calls it.

        Raises:
            KdError: an input, or the output, is neither a tensor nor plain.
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

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The graph's inputs out of a call.

        Raises:
            KdError: an input is missing, given twice, or unknown.
        """
        if len(args) > len(self.parameters):
            raise KdError(f"{len(args)} positional inputs, and the model takes {len(self.parameters)}: {', '.join(self.parameters)}")
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
            f"to have {name} as an input, convert with an example batch that gives it",
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
        return asdict(self)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Signature:
        """The signature that `facts` wrote.

        >>> Signature.read(Signature(("x",), ("x",)).facts()) == Signature(("x",), ("x",))
        True
        """
        return cls(tuple(facts["parameters"]), tuple(facts["inputs"]), tuple(facts["unused"]), dict(facts["constants"]), facts["output"])


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
    """An output as a JSON tree whose leaves number its tensors, and those tensors.

    Caches and other things that are no tensors are left out of HF outputs.

    >>> describe_output((torch.zeros(1), {"a": torch.ones(1)}))
    ({'tuple': [0, {'dict': {'a': 1}}]}, [tensor([0.]), tensor([1.])])

    Raises:
        KdError: it holds something that no graph can give.
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
        raise KdError(f"the model's output holds a {type(value).__name__}", "an exported model gives tensors, and tuples, lists and dicts of them")

    tree = walk(output)
    if not tensors:
        raise KdError("the model's output holds no tensor")
    return tree, tensors


def build_output(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """The output that `describe_output` described, of other tensors.

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


def _output_class(path: str) -> type:
    """The HF output class of that path; for one that is not transformers' own, the class they all share."""
    from transformers.utils import ModelOutput

    module, _, name = path.rpartition(".")
    if module.split(".")[0] == "transformers":
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, ModelOutput):
            return found
    return ModelOutput

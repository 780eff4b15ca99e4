"""Which Python values a saved file may name or make: functions of tensors, and objects whose whole state is their fields.

An object is made without running code of its class, so only classes that are known to be plain data are accepted: configs and other classes
listed in `PLAIN`, dataclasses of trusted packages, and classes of installed plugins. None of them may have a method that Python calls by
itself, such as a destructor. The objects of a skeleton are the user's own; of these, a file can change only the fields.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import KdError, brief
from kdkit.storage.trusted_classes import is_of_plugin, is_trusted, location_of

PLAIN = frozenset(
    {
        "transformers.configuration_utils:PreTrainedConfig",
        "transformers.configuration_utils:PretrainedConfig",  # its name before transformers 5
        "transformers.generation.configuration_utils:GenerationConfig",
        "transformers.utils.quantization_config:QuantizationConfigMixin",
        "peft.config:PeftConfigMixin",
        "peft.tuners.lora.layer:LoraVariant",
        "torch.nn.utils.prune:BasePruningMethod",
        "torch.nn.utils.weight_norm:WeightNorm",
        "torch.nn.utils.spectral_norm:SpectralNorm",
        "torch.nn.utils.spectral_norm:SpectralNormStateDictHook",
        "torch.nn.utils.spectral_norm:SpectralNormLoadStateDictPreHook",
        "torch.nn.modules.module:_WrappedHook",
        "torchao.core.config:AOBaseConfig",
        "bitsandbytes.functional:QuantState",
    }
)
"""Classes of trusted packages whose instances, and those of their subclasses, are plain data."""
SELF_ACTING = ("__del__", "__getattr__", "__setstate__", "__reduce__", "__copy__", "__deepcopy__", "__call__", "__iter__", "__enter__", "__fspath__", "__await__")
"""Methods that Python, `copy` or torch call without the user's asking."""
HOMES = {"torch.nn.functional": torch.nn.functional, "torch": torch, "torch._C._nn": torch._C._nn}
"""Modules in which functions are looked up by name; no other function can be named."""
INTERNAL = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "_output_capturing_hooks_installed", "extra_repr"}
"""Attributes of modules that a saved folder stores in another form, that belong to a running process, or that only change how a module is printed."""
_MISSING = object()


class _Fields:
    """Its instances hold only their `__dict__`; its size tells whether another object holds more."""


def holds_only_fields(kind: type) -> bool:
    """Whether the whole state of an instance is its `__dict__`: no slots, no C fields."""
    return kind.__basicsize__ <= _Fields.__basicsize__ and kind.__dictoffset__ != 0


def is_inert(kind: type) -> bool:
    """Whether nothing happens when an instance with any fields is deleted."""
    return not hasattr(kind, "__del__")


def is_plain_data(kind: type) -> bool:
    """Whether a file may make an instance of a class from fields.

    >>> from transformers import BertConfig
    >>> is_plain_data(BertConfig), is_plain_data(nn.Linear), is_plain_data(functools.partial)
    (True, False, False)
    """
    if not holds_only_fields(kind) or not is_inert(kind) or issubclass(kind, nn.Module | type):
        return False
    if any(location_of(base) in PLAIN for base in kind.__mro__):
        return True
    if any(name in vars(base) for base in kind.__mro__ if base is not object for name in SELF_ACTING):
        return False
    return is_of_plugin(kind) or (is_trusted(kind) and dataclasses.is_dataclass(kind))


def is_nameable(kind: type) -> bool:
    """Whether a class itself may be a value in a file: of modules, tensors or plain data."""
    return issubclass(kind, nn.Module | Tensor) or is_plain_data(kind)


@functools.cache
def _tensor_functions() -> frozenset[int]:
    return frozenset(id(function) for functions in torch.overrides.get_overridable_functions().values() for function in functions)


def function_named(home: str, name: str) -> Any:
    """The function of tensors with that name in a module of torch; None if there is none.

    >>> function_named("torch.nn.functional", "gelu") is torch.nn.functional.gelu, function_named("torch", "load")
    (True, None)
    """
    module = HOMES.get(home)
    found = getattr(module, name, None) if module is not None and not name.startswith("_") else None
    return found if callable(found) and not isinstance(found, type) and _computes(home, found) else None


def _computes(home: str, function: Any) -> bool:
    if id(function) in _tensor_functions() or home == "torch._C._nn":
        return True
    return home == "torch.nn.functional" and (getattr(function, "__module__", None) == home or inspect.isbuiltin(function))


def check_field(kind: type, name: str, value: Any, existing: Any, place: str) -> None:
    """Check that a field of an instance hides nothing that its class defines.

    Args:
        existing: the skeleton's own field of that name; it may hide what it hides.

    Raises:
        KdError: it hides a method, a property or internal state.
    """
    held = inspect.getattr_static(kind, name, _MISSING)
    special = name.startswith("__") or (issubclass(kind, nn.Module) and name in INTERNAL)
    if not special and (held is _MISSING or value is existing or name in getattr(kind, "__dataclass_fields__", ())):
        return
    if special or callable(held) or hasattr(type(held), "__get__") or callable(value):
        raise KdError(f"{place}: {brief(name)} would hide {kind.__name__}.{name[:80]}", "a saved folder can't replace methods: save the model again")

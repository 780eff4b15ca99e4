"""A model's structure as data: describe it, and compare two of them.

*Restore is not replay.* A pruned, factorised or adapted model is restored from a new instance of its class (the skeleton), a manifest (JSON)
and its tensors, without the data, plugin or algorithm that made it. The manifest describes each module by its class, its plain attributes,
its children and the shapes of its tensors; `rebuild` creates a module that the skeleton lacks from these, without calling its constructor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdkit.errors import KdError
from kdkit.models.packed_tensors import flatten, is_packed
from kdkit.storage.json_values import Encoder
from kdkit.storage.trusted_classes import path_of
from kdkit.storage.value_kinds import INTERNAL

SPREAD = 16
"""The most elements of memory that a strided tensor may span for each of its own."""

Manifest = dict[str, Any]

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")
SHOWN = 5


def describe(model: nn.Module) -> Manifest:
    """A model's structure: `{"modules": {name: entry}}`, plain JSON.

    An entry contains the class, the plain attributes, the order of the children, shape, dtype, flags and ties of parameters and buffers,
    hooks that are plain objects, the names of parametrized tensors, and `training`. The entry of a packed tensor contains its parts' entries.

    >>> entry = describe(nn.Sequential(nn.Linear(3, 2)))["modules"]["0"]
    >>> entry["attributes"], entry["parameters"]["bias"]
    ({'in_features': 3, 'out_features': 2}, {'shape': [2], 'dtype': 'float32', 'grad': True})
    """
    return ModelScan(model).manifest


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a model, once, by its first name: parameters, buffers (also non-persistent ones) and tensors in attributes.

    A packed tensor, such as `fc.weight`, is replaced by its parts, such as `fc.weight:scale`.

    >>> list(tensors(nn.Linear(3, 2)))
    ['weight', 'bias']
    """
    return ModelScan(model).tensors


def difference(before: Manifest, after: Manifest) -> Manifest:
    """What changed: the entries of `after` that are new or differ from `before`, and the names that were removed.

    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> before = describe(net)
    >>> net[1].inplace = True
    >>> list(difference(before, describe(net))["modules"])
    ['1']
    """
    old, new = before["modules"], after["modules"]
    return {"modules": {name: entry for name, entry in new.items() if old.get(name) != entry}, "removed": [name for name in old if name not in new]}


def raise_if_any(problems: list[str], what: str, *hints: str) -> None:
    """Raise KdError with the first few problems, if there are any."""
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise KdError(f"{what}: {'; '.join([*problems[:SHOWN], *more])}", *hints)


class ModelScan:
    """One pass over a model: its manifest, and its tensors by their names in the manifest."""

    def __init__(self, model: nn.Module):
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._names: dict[int, str] = {}
        self._storages: dict[tuple[Any, ...], str] = {}
        self._alive: list[Any] = []  # a tensor may create its parts on access; keep them, so that ids stay unique
        self.tensors: dict[str, Tensor] = {}
        self.packed: dict[str, Tensor] = {}
        self._encoder = Encoder(self._loose, self._modules)
        modules = dict(model.named_modules())
        held = {name: self._held(name, module) for name, module in modules.items()}
        self.manifest: Manifest = {"modules": {name: self._entry(name, module) | held[name] for name, module in modules.items()}}

    def _entry(self, name: str, module: nn.Module) -> dict[str, Any]:
        places = {key: self._modules[id(child)] for key, child in module._modules.items() if child is not None}
        entry: dict[str, Any] = {"class": path_of(type(module)), "training": module.training, "children": list(module._modules)}
        entry["attributes"] = {key: self._encoder.encode(value, f"{name}:{key}") for key, value in vars(module).items() if key not in INTERNAL}
        aliases = {key: places.get(key) for key in module._modules if places.get(key) != join(name, key)}
        hooks = {kind: codes for kind in HOOKS if (codes := self._hooks(name, kind, getattr(module, kind).values()))}
        parametrized = list(module.get_submodule("parametrizations")._modules) if parametrize.is_parametrized(module) else []
        return entry | {key: value for key, value in (("aliases", aliases), ("hooks", hooks), ("parametrized", parametrized)) if value}

    def _hooks(self, name: str, kind: str, hooks: Iterable[Any]) -> list[Any]:
        own = [hook for hook in hooks if not is_library_hook(hook)]
        return [self._encoder.encode(hook, f"{name}:{kind}.{index}") for index, hook in enumerate(own)]

    def _held(self, name: str, module: nn.Module) -> dict[str, Any]:
        parameters = {key: self._spec(tensor, join(name, key)) for key, tensor in module._parameters.items()}
        buffers = {key: self._spec(tensor, join(name, key)) for key, tensor in module._buffers.items()}
        for key in module._non_persistent_buffers_set & buffers.keys():
            buffers[key] = (buffers[key] or {}) | {"persistent": False}
        return {"parameters": parameters, "buffers": buffers}

    def _loose(self, tensor: Tensor, place: str) -> dict[str, Any]:
        """The JSON of a tensor in an attribute: a name, and its spec if it is no parameter or buffer."""
        if id(tensor) in self._names:
            return {"$": "tensor", "name": self._names[id(tensor)]}
        return {"$": "tensor", "name": place, "spec": self._spec(tensor, place)}

    def _spec(self, tensor: Tensor | None, name: str) -> dict[str, Any] | None:
        if tensor is None:
            return None
        if is_packed(tensor):
            return self._packed(tensor, name)
        spec = tensor_spec(tensor)
        if id(tensor) in self._names:
            return spec | {"same": self._names[id(tensor)]}
        self._names[id(tensor)] = name
        key = _memory_of(tensor)
        if key in self._storages:
            return spec | {"shares": self._storages[key]}
        if key:
            self._storages[key] = name
        self.tensors[name] = tensor
        return spec

    def _packed(self, tensor: Tensor, name: str) -> dict[str, Any]:
        """The spec of a packed tensor: its class, its named parts, and the other data that it needs."""
        spec = tensor_spec(tensor)
        if id(tensor) in self._names:
            return spec | {"same": self._names[id(tensor)]}
        self._names[id(tensor)] = name
        self.packed[name] = tensor
        parts, context = flatten(tensor)
        self._alive.append(parts)
        inner = {key: self._spec(part, f"{name}:{key}") for key, part in parts.items()}
        return spec | {"stride": list(tensor.stride()), "context": self._encoder.encode(context, f"{name}:context"), "inner": inner}


def join(name: str, key: str) -> str:
    """A child's full name.

    >>> join("", "fc"), join("layer.0", "fc")
    ('fc', 'layer.0.fc')
    """
    return f"{name}.{key}" if name else key


def tensor_spec(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype, and the flags, class and strides that differ from a contiguous plain tensor's."""
    spec: dict[str, Any] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.is_leaf and tensor.requires_grad:
        spec["grad"] = True
    if not is_plain(tensor):
        return spec | {"class": path_of(type(tensor))}
    if not tensor.is_contiguous() and not _overlaps(tensor) and span(tensor.shape, tensor.stride()) <= SPREAD * tensor.numel():
        spec["stride"] = list(tensor.stride())  # a kernel may sum in another order for another layout, and outputs would differ in their last bits
    return spec


def span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """The elements of memory from the first to the last element of a strided tensor.

    >>> span([2, 3], [3, 1]), span([2, 3], [10, 1]), span([0, 3], [3, 1])
    (6, 13, 0)
    """
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may share memory, as in an expanded tensor."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is only numbers in strided memory: no subclass, not sparse, not quantized, not lazy."""
    return type(tensor) in (Tensor, nn.Parameter) and type(tensor.data) is Tensor and tensor.layout is torch.strided and not tensor.is_quantized


def _memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """A key that is equal for tensors on the same memory; empty for tensors without memory of their own."""
    if not is_plain(tensor) or not tensor.numel():
        return ()
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def is_library_hook(hook: Any) -> bool:
    """Whether a model computes the same results without the hook.

    transformers installs its hooks again at each call; the hooks of torch's weight_norm and of bitsandbytes only read older state dicts.
    """
    hook = getattr(hook, "hook", hook)
    return str(getattr(hook, "__module__", "")).startswith(("transformers.", "bitsandbytes.", "torch.nn.utils.parametrizations"))

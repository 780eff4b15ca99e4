"""Count parameters and bytes; shared tensors count once, and packed weights by their stored bytes."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdkit.models.packed_tensors import plain_parts


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a model: shared ones count once, packed ones by the number of weights that they encode.

    A model without tensors implements `kdkit_parameters() -> int`.

    >>> count_parameters(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)))
    24
    """
    answer = getattr(model, "kdkit_parameters", None)
    return answer() if answer else sum(parameters_by_name(model).values())


def parameters_by_name(model: nn.Module) -> dict[str, int]:
    """The number of weights of each parameter; a shared parameter has only its first name.

    A module whose buffers encode weights, such as packed integers, states in `kdkit_encoded` how many weights each of them stands for.

    >>> parameters_by_name(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    {'0.weight': 12, '0.bias': 4}
    >>> class Signs(nn.Module):
    ...     kdkit_encoded = {"bits": 12}
    >>> parameters_by_name(nn.Sequential(Signs()))
    {'0.bits': 12}
    """
    packed = {storage_key(tensor): (name, tensor) for name, tensor in reversed(packed_tensors(model))}
    counts = {name: _numbers(weight) for name, weight in model.named_parameters()}
    for name, tensor in reversed(packed.values()):
        counts[name] = counts.get(name, 0) + tensor.numel()
    for place, module in model.named_modules():
        counts |= {f"{place}.{name}".strip("."): count for name, count in getattr(module, "kdkit_encoded", {}).items()}
    return counts


def size_bytes(model: nn.Module) -> int:
    """The bytes of a model's state in a safetensors file, without its short header; shared tensors count once.

    Packed weights count by their stored bytes, including scales and zero points; buffers that are not part of the state do not
    count. A model without tensors implements `kdkit_size_bytes() -> int`.

    >>> size_bytes(nn.Linear(3, 4))
    64
    """
    answer = getattr(model, "kdkit_size_bytes", None)
    return answer() if answer else sum(bytes_by_name(model).values())


def bytes_by_name(model: nn.Module) -> dict[str, int]:
    """The bytes of each entry of a model's state; a shared tensor counts only under its first name.

    >>> bytes_by_name(nn.Linear(3, 4))
    {'weight': 48, 'bias': 16}
    """
    state = model.state_dict()
    parts = [(name, part) for name, value in state.items() for tensor in _tensors_in(value) for part in plain_parts(tensor)]
    sizes: dict[str, int] = dict.fromkeys(state, 0)
    for name, part in {storage_key(part): (name, part) for name, part in reversed(parts)}.values():
        sizes[name] += part.nbytes
    return sizes


def _numbers(weight: Tensor) -> int:
    """The number of weights in a parameter; a 4-bit parameter of bitsandbytes stores two in each element."""
    packed_from = getattr(getattr(weight, "quant_state", None), "shape", None)
    return weight.numel() if packed_from is None else prod(packed_from)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of one entry of a state, which is a tuple or script object in quantized modules."""
    if isinstance(value, torch.ScriptObject):
        value = value.__getstate__()
    for item in tree_leaves(value):
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, torch.ScriptObject):
            yield from _tensors_in(item)


def storage_key(tensor: Tensor) -> tuple[int, int, int]:
    """A key that is equal for two living tensors on the same bytes; it also works on the meta device, where tensors have no address."""
    if tensor.layout is not torch.strided:
        return id(tensor), 0, tensor.numel()
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.nbytes


def packed_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights and biases that quantized modules store in their state instead of as parameters, with their names in the state."""
    if not any(type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")) for module in model.modules()):
        return []
    known = {name for tensors in (model.named_parameters, model.named_buffers) for name, _ in tensors(remove_duplicate=False)}
    state = model.state_dict().items()
    return [(name, tensor) for name, value in state if name not in known and name.rpartition(".")[2] not in ("scale", "zero_point") for tensor in _tensors_in(value)]

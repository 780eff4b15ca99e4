"""Stage detection: the outputs of a net's layers for one batch, and which layers are its stages."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdkit import Batch, KdError
from kdkit.guards import always_run, random_state_kept
from kdkit.models import device_of, evaluating, failure

_LISTS = (nn.ModuleList, nn.Sequential)
_LARGEST_STEP = 2.0
"""A single stage shrinks its map by this factor at most; a module that shrinks it further contains several stages."""


@dataclass(frozen=True)
class Layer:
    """A module as it ran in one forward pass.

    Attributes:
        name: dotted.
        shape: of its first output tensor.
        taken: shape of its first input tensor; empty where it had none.
        calls: how often it ran.
        same: the layer that returned the same tensor before it, such as the last one within a container.
        fed: the layer whose output is its input, unchanged.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    taken: tuple[int, ...]
    calls: int
    same: str
    fed: str

    @property
    def size(self) -> tuple[int, ...]:
        """(height, width) of a map."""
        return self.shape[2:]

    @property
    def weighted(self) -> bool:
        """Whether it, or a part of it, has weights."""
        return any(True for _ in self.module.parameters())

    @property
    def composite(self) -> bool:
        """Whether it consists of several modules with weights."""
        return self.weighted and any(True for _ in self.module.children())

    @property
    def noise(self) -> bool:
        """Whether it is random in training, such as dropout, or an identity."""
        return type(self.module).__name__.startswith(("Dropout", "DropPath", "StochasticDepth", "Identity", "Flatten"))


def observed(model: nn.Module, example: Batch) -> dict[str, Layer]:
    """All layers that return floating tensors for a batch, in the order in which they finish; modes, statistics and generators do not change.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> [(layer.name, layer.shape) for layer in observed(net, Batch((torch.zeros(4, 2),))).values()]
    [('0', (4, 3)), ('1', (4, 3))]
    """
    found: dict[str, Layer] = {}
    alive: dict[int, tuple[weakref.ref, str]] = {}
    mine: dict[int, Callable] = {}

    def giver(tensor: Tensor | None) -> str:
        held = alive.get(id(tensor))
        return held[1] if held is not None and held[0]() is tensor else ""

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            tensor, given = first_tensor(output), first_tensor((*args, *kwargs.values()))
            if tensor is None or not tensor.is_floating_point():
                return
            calls = found.pop(name).calls + 1 if name in found else 1
            found[name] = Layer(name, module, tuple(tensor.shape), () if given is None else tuple(given.shape), calls, giver(tensor), giver(given))
            alive[id(tensor)] = (weakref.ref(tensor), name)

        mine[id(see)] = see
        return see

    def unhook() -> None:
        for module in model.modules():
            for number in [number for number, hook in module._forward_hooks.items() if id(hook) in mine]:
                module._forward_hooks_with_kwargs.pop(number, None)
                del module._forward_hooks[number]

    with always_run(unhook), random_state_kept(), evaluating(model):
        for name, module in model.named_modules():
            if name:
                module.register_forward_hook(watch(name), with_kwargs=True)
        answered(model, example.to(device_of(model)))
    return found


def answered(model: nn.Module, batch: Batch, who: str = "") -> Any:
    """A model's output for a batch.

    Args:
        who: the model's name in a message; default: its class.

    Raises:
        KdError: the model raises an error.
    """
    try:
        return batch.call(model)
    except KdError:
        raise
    except Exception as error:
        raise failure(f"{who or type(model).__name__} fails on a batch", model, batch, error) from error


def first_tensor(output: Any) -> Tensor | None:
    """The tensor among a layer's outputs: itself, or the first of a tuple or mapping, also within one.

    >>> import torch
    >>> first_tensor((None, torch.ones(1)))
    tensor([1.])
    """
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def stages(model: nn.Module, example: Batch) -> list[Layer]:
    """The stages of a net, in order of depth: a transformer's blocks, a CNN's stages, a plain net's hidden layers.

    >>> import torch
    >>> [layer.name for layer in stages(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), Batch((torch.zeros(4, 2),)))]
    ['1']
    """
    seen = observed(model, example)
    # a detector's heads return an entry for each region that it found, and these are others in another net
    blocks, maps = _repeated(model, seen), _maps(model, {name: layer for name, layer in seen.items() if layer.shape[:1] == (example.size,)})
    most = 2 * _weights(nn.ModuleList(layer.module for layer in blocks)) > _weights(model) - sum(
        _weights(part) for part in model.modules() if isinstance(part, nn.Embedding)
    )
    if blocks and (most or not maps):
        return blocks
    return maps or _plain(seen, 3) or _plain(seen, 2)


def penultimate(model: nn.Module, example: Batch) -> str:
    """The layer whose output is the last feature before the head: a vector, a map (batch, channels, height, width), or tokens.

    Operations without a module (a mean over the map, a functional ReLU) come between it and the head if the net has any.

    Raises:
        KdError: the net has only one layer with weights, so no feature comes before its output.

    >>> import torch
    >>> penultimate(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 1)), Batch((torch.zeros(4, 2),)))
    '1'
    """
    seen = observed(model, example)
    blocks = _repeated(model, seen)
    working = [layer for layer in seen.values() if _works(layer.module)]
    head = working[-1] if working else None
    if blocks and head is not None and any(head.name.startswith(f"{block.name}.") for block in blocks):
        return blocks[-1].name
    before = list(seen.values())[: list(seen).index(head.name)] if head is not None else []
    before = [layer for layer in before if len(layer.shape) > 1 and layer.shape[0] == example.size and layer.calls == 1]
    giver = seen.get(head.fed) if head is not None else None
    while giver is not None and giver.noise:
        giver = seen.get(giver.fed) or seen.get(giver.same)
    if giver is None or giver not in before:
        giver = next((layer for layer in reversed(before) if not layer.noise and not isinstance(layer.module, nn.Embedding)), None)
    if giver is None:
        raise KdError(f"{type(model).__name__} has no layer before its head", "name a layer whose output is the feature to compare: --layers student_layer=teacher_layer")
    same = [layer for layer in before if not layer.noise and layer.shape == giver.shape and _root(layer, seen) == _root(giver, seen)]
    return _named(same or [giver], seen).name


def _root(layer: Layer, seen: Mapping[str, Layer]) -> str:
    """The first layer that returned this layer's tensor."""
    while layer.same in seen and layer.same != layer.name:
        layer = seen[layer.same]
    return layer.name


def _named(same: list[Layer], seen: Mapping[str, Layer]) -> Layer:
    """Of layers that return the same tensor, the outermost block that does not contain most of the net."""
    most = 0.5 * sum(1 for layer in seen.values() if _works(layer.module))
    small = [layer for layer in same if sum(1 for other in seen if other.startswith(f"{layer.name}.") and _works(seen[other].module)) <= most]
    return (small or same)[-1]


def _works(module: nn.Module) -> bool:
    """Whether it transforms its inputs with weights: not a norm, an embedding or a container."""
    kind = type(module).__name__
    own = any(weight.ndim > 1 for weight in module.parameters(recurse=False))
    return own and not isinstance(module, nn.Embedding) and "Norm" not in kind


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _repeated(model: nn.Module, seen: Mapping[str, Layer]) -> list[Layer]:
    """The blocks of the largest list of one class that return tokens (batch, tokens, hidden), all of one shape.

    A block that runs several times, as in ALBERT, is listed once.
    """
    best: list[Layer] = []
    for name, holder in model.named_modules():
        if not isinstance(holder, _LISTS):
            continue
        found = [layer for child, _ in holder.named_children() if (layer := seen.get(f"{name}.{child}" if name else child)) is not None]
        alike = len({(type(layer.module), layer.shape) for layer in found}) == 1 and all(len(layer.shape) == 3 and layer.composite for layer in found)
        enough = len(found) > 1 or isinstance(holder, nn.ModuleList)
        if alike and enough and sum(_weights(layer.module) for layer in found) > sum(_weights(layer.module) for layer in best):
            best = found
    return best


def _maps(model: nn.Module, seen: Mapping[str, Layer]) -> list[Layer]:
    """The last stage of each map size of a CNN; the blocks if all maps have one size."""
    units = [unit for unit in _units(model, "", seen) if len(unit.shape) == 4 and unit.size != (1, 1) and unit.calls == 1]
    groups: dict[tuple[int, ...], list[Layer]] = {}
    for unit in units:
        groups.setdefault(unit.size, []).append(unit)
    groups = {size: group for size, group in groups.items() if any(unit.weighted for unit in group)}
    if len(groups) == 1:
        return _blocks(next(iter(groups.values())), seen)
    picks = sorted((_last(group) for group in groups.values()), key=list(seen.values()).index)
    whole = [pick for pick in picks if pick.composite]
    return whole if len(whole) > 1 else picks


def _last(group: list[Layer]) -> Layer:
    return ([unit for unit in group if not unit.noise] or group)[-1]


def _blocks(group: list[Layer], seen: Mapping[str, Layer]) -> list[Layer]:
    blocks = [unit for unit in group if unit.composite]
    if len(blocks) == 1:
        inner = [unit for unit in _units(blocks[0].module, blocks[0].name, seen) if unit.composite and unit.shape[2:] == blocks[0].size and unit.calls == 1]
        blocks = inner if len(inner) > 1 else blocks
    return blocks if len(blocks) > 1 or _last(group) in blocks else [_last(group)]


def _units(module: nn.Module, name: str, seen: Mapping[str, Layer]) -> list[Layer]:
    """The parts of a module that are stages, in the order in which they finish."""
    found: list[Layer] = []
    for child, part in module.named_children():
        place = f"{name}.{child}" if name else child
        layer = seen.get(place)
        if layer is None or (layer.composite and not _one_stage(layer)):
            inner = _units(part, place, seen)
            found += inner or ([layer] if layer is not None else [])
        else:
            found.append(layer)
    return sorted(found, key=lambda layer: list(seen).index(layer.name))


def _one_stage(layer: Layer) -> bool:
    if len(layer.shape) != 4:
        return False
    if len(layer.taken) != 4:
        return True
    return all(before <= _LARGEST_STEP * after + 1 for before, after in zip(layer.taken[2:], layer.shape[2:], strict=True))


def _plain(seen: Mapping[str, Layer], dimensions: int) -> list[Layer]:
    """For each layer with weights, the last layer before the next one, such as its norm or ReLU; the output layer is left out."""
    found: list[Layer] = []
    for layer in _leaves(seen):
        if _works(layer.module):
            found.append(layer)
        elif found and not layer.noise and layer.shape == found[-1].shape and not isinstance(layer.module, nn.Embedding):
            found[-1] = layer
    answering = found[-1:] if dimensions == 2 or not _plain_follows(seen, found) else []
    return [layer for layer in found if len(layer.shape) == dimensions and layer.calls == 1 and layer not in answering]


def _plain_follows(seen: Mapping[str, Layer], found: list[Layer]) -> bool:
    """Whether vectors come after the tokens, so that the last tokens are not the output."""
    return bool(found) and len(found[-1].shape) == 2


def _leaves(seen: Mapping[str, Layer]) -> Iterator[Layer]:
    for layer in seen.values():
        if not any(other.startswith(f"{layer.name}.") for other in seen):
            yield layer

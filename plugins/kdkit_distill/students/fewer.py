"""Fewer layers: a copy of a net with only some of its repeated blocks, which keep their weights.

On MiniLM, three of six layers distilled to .814, the same net from scratch to .074. Sanh et al., "DistilBERT", 2019
(arXiv:1910.01108) initialize their student in this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from torch import nn

from kdkit import Batch, KdError
from kdkit.models import private_copy, try_call

_STACKS = ("num_hidden_layers", "num_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers", "decoder_layers")
"""Attributes of configurations for the number of layers; those of a decoder last, since models have it last."""


def stacks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks of a model: `nn.Sequential`s and `nn.ModuleList`s of two or more of one class, outermost ones, by name.

    >>> block = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> list(stacks(nn.Sequential(nn.Linear(2, 4), nn.ModuleList([block(), block()]))))
    ['1']
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        blocks = list(module.children())
        inside = any(name.startswith(f"{outer}.") for outer in found)
        alike = len({type(block) for block in blocks}) == 1 and len(blocks) > 1 and any(True for _ in blocks[0].children())
        if name and isinstance(module, nn.Sequential | nn.ModuleList) and alike and not inside:
            found[name] = module
    config = getattr(model, "config", None)
    depths = {getattr(config, key, None) for key in _STACKS} - {None}
    return {name: stack for name, stack in found.items() if len(list(stack.children())) in depths} or found


def with_layers(model: nn.Module, kept: Sequence[int], batch: Batch) -> nn.Module:
    """A copy that has only these of its repeated blocks, numbered from 0 through all stacks; its configuration is updated.

    Raises:
        KdError: there are no such blocks, a number is out of range, or the remaining blocks do not fit together.
    """
    made = private_copy(model)
    found = stacks(made)
    count = sum(len(list(stack.children())) for stack in found.values())
    name = f"--student layers={','.join(map(str, kept))}"
    if not found:
        raise KdError(f"{name}: {type(model).__name__} has no repeated layers of one class", "--student narrow=0.5 makes it narrower", "or pass your own student")
    if list(kept) != sorted(set(kept)) or kept[-1] >= count:
        raise KdError(f"{name}: name layers of 0 to {count - 1}, each once, in order", f"{type(model).__name__} has them in {', '.join(found)}")
    if len(kept) == count:
        raise KdError(f"{name} keeps all layers", "name fewer, such as every second one")
    starts = [0, *accumulate(len(list(stack.children())) for stack in found.values())]
    numbers = [[layer - start for layer in kept if start <= layer < end] for start, end in pairwise(starts)]
    for stack, mine in zip(found.values(), numbers, strict=True):
        _keep(stack, mine)
    _write_back(made, [len(list(stack.children())) for stack in found.values()], starts, numbers)
    try:
        try_call(made, batch)
    except KdError as error:
        where = "; ".join(f"{stack} has {start} to {end - 1}" for stack, start, end in zip(found, starts[:-1], starts[1:], strict=True))
        raise KdError(f"{name}: the remaining layers do not fit together: {error.message}", "a layer that changes the shape must stay", where) from error
    return made


def _keep(stack: nn.Module, numbers: Sequence[int]) -> None:
    blocks = list(stack.children())
    stack._modules = {str(place): blocks[number] for place, number in enumerate(numbers)}
    for place, block in enumerate(stack.children()):
        for module in block.modules():
            # a layer's index in the cache of keys and values
            if hasattr(module, "layer_idx"):
                module.layer_idx = place  # type: ignore[assignment]


def _write_back(model: nn.Module, left: Sequence[int], starts: Sequence[int], numbers: Sequence[Sequence[int]]) -> None:
    """Write the new number of layers to a transformers configuration, so that `from_pretrained` works."""
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return
    before = [end - start for start, end in pairwise(starts)]
    names = [key for key in _STACKS if isinstance(getattr(config, key, None), int)]
    for key in ("layer_types", "mlp_layer_types"):
        if len(before) == 1 and isinstance(depths := getattr(config, key, None), list) and len(depths) == before[0]:
            setattr(config, key, [depths[number] for number in numbers[0]])
    changes: dict[str, int] = {}
    for key in names:
        number = len(left) - 1 if "decoder" in key else 0
        if getattr(config, key) == before[number]:
            changes[key] = left[number]
    for key, value in changes.items():
        setattr(config, key, value)

"""Blocks: modules in a row whose inputs and outputs are alike, so that the model runs without some of them.

A block is a child of an `nn.Sequential` or `nn.ModuleList`, such as a residual block or a layer of a transformer. It counts as removable only
where deleting it gives the same outputs as passing its inputs on.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import Batch
from kdkit.models import evaluating
from kdkit_prune.trial_cut import observe

POSITIONS = ("layer_idx", "layer_id", "layer_number")
"""Attributes in which a block states its place in the row."""

ROWS = (nn.Sequential, nn.ModuleList)


@dataclass
class Calls:
    """What a module was called with in one forward.

    Attributes:
        inputs, outputs: the first tensor of each call.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def find_blocks(model: nn.Module, batch: Batch) -> tuple[list[str], dict[str, str]]:
    """The names of the blocks that can be removed, in order, and those that can't with the reason.

    >>> net = nn.Sequential(nn.Linear(4, 8), *[nn.TransformerEncoderLayer(8, 2, batch_first=True) for _ in range(2)], nn.Linear(8, 2))
    >>> find_blocks(net, Batch((torch.zeros(2, 3, 4),)))
    (['1', '2'], {})
    """
    candidates = _composite_children(model)
    with watch_calls(model, candidates) as calls, evaluating(model):
        batch.call(model)
    alike = [name for name in candidates if _is_alike(calls[name])]
    outermost = [name for name in alike if not any(name.startswith(f"{other}.") for other in alike)]
    expected = {name: _outputs_without(model, name, batch) for name in outermost}
    left = {name: reason for name in outermost if (reason := _fault(model, name, batch, expected[name]))}
    return [name for name in outermost if name not in left], left


def _composite_children(model: nn.Module) -> list[str]:
    """Children of rows that are made of other modules and are no rows themselves."""
    rows = [(name, module) for name, module in model.named_modules() if type(module) in ROWS]
    children = [(f"{name}.{key}".lstrip("."), child) for name, row in rows for key, child in row._modules.items()]
    return [name for name, child in children if child is not None and child._modules and type(child) not in ROWS]


def _is_alike(calls: Calls) -> bool:
    return len(calls.inputs) == len(calls.outputs) == 1 and calls.inputs[0].shape == calls.outputs[0].shape and calls.inputs[0].dtype == calls.outputs[0].dtype


def _outputs_without(model: nn.Module, name: str, batch: Batch) -> list[Tensor]:
    with passing_on(model, [name]):
        return observe(model, batch)


def _fault(model: nn.Module, name: str, batch: Batch, expected: list[Tensor]) -> str:
    try:
        actual = observe(without_blocks(model, [name]), batch)
    except Exception:  # whatever a forward may raise: that it raises is the finding
        return "without it the forward fails, because the model's code counts on it"
    same = len(actual) == len(expected) and all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(actual, expected, strict=True)
    )
    return "" if same else "the model uses its place or its other outputs elsewhere"


@contextlib.contextmanager
def watch_calls(model: nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, Calls]]:
    """The inputs and outputs of some modules, gathered while the context lasts."""
    calls = {name: Calls() for name in names}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if (given := first_tensor((args, kwargs))) is not None and (made := first_tensor(output)) is not None:
                calls[name].inputs.append(given.detach())
                calls[name].outputs.append(made.detach())

        return hook

    with ExitStack() as hooks:
        for name in calls:
            hooks.callback(model.get_submodule(name).register_forward_hook(record(name), with_kwargs=True).remove)
        yield calls


@contextlib.contextmanager
def passing_on(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let some blocks pass their inputs on, as if they were not there."""

    def pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = first_tensor((args, kwargs))
        return (given, *output[1:]) if isinstance(output, tuple) else given

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_hook(pass_on, with_kwargs=True).remove)
        yield


def first_tensor(value: Any) -> Tensor | None:
    """The first floating-point tensor of a value.

    >>> first_tensor(((torch.tensor([1]), torch.tensor([2.0])), {}))
    tensor([2.])
    """
    leaves = torch.utils._pytree.tree_leaves(value)
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)


def without_blocks(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A model without some blocks, which shares all its tensors with `model`."""
    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    remove_blocks(twin, names)
    return twin


def remove_blocks(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Delete blocks, in place. Those that follow move up: their numbers, and attributes that state them, change.

    Returns:
        Old name -> new name of the blocks that moved up.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    >>> remove_blocks(net, ["1"]), len(net)
    ({'2': '1'}, 2)
    """
    renamed: dict[str, str] = {}
    going: dict[str, set[str]] = {}
    for name in names:
        row, _, key = name.rpartition(".")
        going.setdefault(row, set()).add(key)
    for row, keys in going.items():
        children = model.get_submodule(row)._modules
        kept = [(key, child) for key, child in children.items() if key not in keys]
        numbered = list(children) == [str(index) for index in range(len(children))]
        children.clear()
        for index, (key, child) in enumerate(kept):
            new = str(index) if numbered else key
            children[new] = child
            if new != key:
                renamed[f"{row}.{key}".lstrip(".")] = f"{row}.{new}".lstrip(".")
                _move_up(child, int(key), index)
    return renamed


def _move_up(block: nn.Module | None, old: int, new: int) -> None:
    for module in block.modules() if block is not None else ():
        for attribute in POSITIONS:
            if type(getattr(module, attribute, None)) is int and getattr(module, attribute) == old:
                setattr(module, attribute, new)

"""Channels of convolutional and fully connected nets: torch-pruning's dependency graph finds the coupled layers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdkit import Batch, KdError
from kdkit.models import evaluating, linear_kinds, weights_elsewhere
from kdkit_prune.groups import NOT_FOLLOWED, Axis, Excluded, Group, NotPrunable, Part, PruningPlanScope, axis_of, makes_units
from kdkit_prune.trial_cut import lists_items


def anatomy(model: nn.Module, batch: Batch) -> PruningPlanScope:
    """The coupled channels of a model without attention.

    Raises:
        KdError: the model can't be traced.
    """
    attention = hidden_attention(model, batch)
    if attention:
        raise KdError(
            f"prune channels does not know how the attention of {type(model).__name__} is laid out ({attention})",
            "known: children named query/key/value, q_proj/k_proj/v_proj/o_proj, q_lin/k_lin/v_lin/out_lin, c_attn/c_proj, qkv/proj",
        )
    found = PruningPlanScope([])
    for coupled in _traced(model, batch):
        root = next((name for name, module in model.named_modules() if module is coupled[0].dep.target.module), "")
        try:
            found.groups.append(_group(model, root, coupled))
        except NotPrunable as reason:
            found.left.append(Excluded("channels", root, str(reason)))
        except (IndexError, KeyError, ValueError, RuntimeError):  # indices beyond a tensor: torch-pruning followed a wrong path
            found.left.append(Excluded("channels", root, NOT_FOLLOWED))
    found.left += [Excluded("channels", name, reason) for name, reason in weights_elsewhere(model, linear_kinds()).items()]
    return found


def _traced(model: nn.Module, batch: Batch) -> list[Any]:
    import torch_pruning

    forward = _call_layers if lists_items(model, batch) else _call
    recurrent = [weight for module in model.modules() if isinstance(module, nn.RNNBase) for weight in module.parameters()]
    with differentiable(model), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(model, batch, forward_fn=forward, output_transform=_outputs, ignored_params=recurrent, verbose=False)
            return list(graph.get_all_groups())
        except Exception as error:  # tracing can fail in any way on a model that it does not support
            raise KdError(
                f"prune channels: torch-pruning can't follow the channels of {type(model).__name__}",
                "%kd decompose svd and %kd quantize dynamic need not follow them",
            ) from error


def _call(model: nn.Module, batch: Batch) -> Any:
    return batch.call(model)


def _call_layers(model: nn.Module, batch: Batch) -> list[Any]:
    """The outputs of all layers that make units, for a model that selects detections from them: the selection can't be followed, and cuts nothing."""
    seen: list[Any] = []
    hooks = [layer.register_forward_hook(lambda module, given, output: seen.append(output)) for layer in model.modules() if makes_units(layer)]
    try:
        batch.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _outputs(output: Any) -> Any:
    """The tensors of a model's output that belong to the autograd graph."""
    flat = torch.utils._pytree.tree_leaves(dict(output) if isinstance(output, dict) else output)
    return [item for item in flat if isinstance(item, Tensor) and item.grad_fn is not None]


def _group(model: nn.Module, root: str, coupled: Any) -> Group:
    """Convert a group of torch-pruning.

    Raises:
        NotPrunable: something in it can't be cut.
    """
    count = len(coupled[0].idxs)
    places = {module: name for name, module in model.named_modules()}
    found: list[tuple[str, Axis, Tensor, int, bool]] = []
    for item in coupled:
        target = item.dep.target.module
        if isinstance(target, nn.Module) and target not in places:
            continue  # an operation between modules
        name, axis, width, bundles = _width(model, places, coupled._DG, item)
        if any(index is None for index in item.root_idxs):
            raise NotPrunable(f"torch-pruning lost track of them at {name}")
        owner = torch.full((width,), -1)
        owner[torch.tensor(item.idxs)] = torch.tensor(item.root_idxs)
        found.append((name, axis, owner, bundles, isinstance(target, nn.Module) and _is_out(coupled._DG, item) and makes_units(target)))
    # channels at one offset in all groups of a grouped convolution, or of a GroupNorm, can only go together
    units = count
    for _, _, owner, bundles, _ in found:
        units = gcd(units, len(owner) // bundles) if bundles > 1 else units
    if units < 2:
        raise NotPrunable("there is a single channel to a group")
    parts = tuple(Part(name, axis, torch.where(owner < 0, owner, owner % units), writes) for name, axis, owner, _, writes in found)
    return Group(root, "channels", units, parts, width=count // units)


def _is_out(graph: Any, item: Any) -> bool:
    return bool(graph.is_out_channel_pruning_fn(item.dep.handler))


def _width(model: nn.Module, places: dict[nn.Module, str], graph: Any, item: Any) -> tuple[str, Axis, int, int]:
    """(module, axis, its width, in how many groups of channels it works) of one item of a group."""
    target = item.dep.target.module
    if isinstance(target, nn.Parameter):
        owner, _, name = graph._param_to_name[target].rpartition(".")
        dim = item.dep.target.pruning_dim % target.dim()
        return owner, Axis(((name, dim),)), target.shape[dim], 1
    side = "out" if _is_out(graph, item) else "in"
    axis = axis_of(target, side)  # type: ignore[arg-type]
    if isinstance(target, nn.modules.conv._ConvNd) and axis.attributes[-1:] != ("groups",):
        return places[target], axis, target.out_channels if side == "out" else target.in_channels, target.groups
    bundles = target.num_groups if isinstance(target, nn.GroupNorm) else 1
    if axis.attributes:
        stated = getattr(target, axis.attributes[0])
        return places[target], axis, stated[-1] if isinstance(stated, tuple) else stated, bundles
    return places[target], axis, target.weight.shape[0], bundles


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, with requires_grad for every floating-point weight; restores modes and flags afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        model.eval()
        for weight, _ in flags:
            if weight.is_floating_point():
                weight.requires_grad_(True)
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)


KEY_HEADS = ("num_key_value_groups", "num_key_value_heads", "num_kv_heads", "n_kv_heads")
"""Attributes of attention in which several query heads share a key/value head."""


class _Attention(TorchFunctionMode):
    """Notices calls that only attention makes; shared keys and values (grouped queries) make torch-pruning hang."""

    seen = ""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(func, "__name__", "")
        shared = name in ("expand", "repeat_interleave") and args[0].dim() > 3
        if shared or name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
            self.seen = name
        return func(*args, **(kwargs or {}))


def hidden_attention(model: nn.Module, batch: Batch) -> str:
    """The attention call that was observed, or the attribute that indicates attention; empty if there is none."""
    for module in model.modules():
        for name in KEY_HEADS:
            if hasattr(module, name):
                return f"{type(module).__name__}.{name}"
    with evaluating(model), _Attention() as watch:
        batch.call(model)
    return watch.seen

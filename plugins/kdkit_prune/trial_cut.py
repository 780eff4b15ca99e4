"""Trial cut: a group counts as removable only after a cut on a copy has worked.

Zeroing a unit's weights in the full model and cutting it away must give the same output. Where it doesn't, or where the
cut model no longer runs, or its output changes shape, the group is not what it seemed (a pad, slice or reshape over
channels; a head that is looked up elsewhere) and is left alone with that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import Batch
from kdkit.guards import random_state_kept
from kdkit.models import evaluating, private_copy, untouchable
from kdkit_prune.groups import NOT_FOLLOWED, Axis, Excluded, Group, PruningPlanScope, axis_of, cut, lost, makes_units, normalizes_across, zero_units

INNER_OUTPUTS = (
    "past_key_values", "hidden_states", "attentions", "cross_attentions", "mems",
    "encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions", "decoder_hidden_states", "decoder_attentions",
)  # fmt: skip
"""Outputs of transformers besides the main one; their shapes follow from the structure."""


def sound(model: nn.Module, batch: Batch, anatomy: PruningPlanScope, tick: Callable[[], None] = lambda: None) -> PruningPlanScope:
    """The same anatomy with only the groups that pass the trial; the others are named in `left`."""
    passed: list[Group] = []
    left = list(anatomy.left)
    listed = bool(anatomy.groups) and lists_items(model, batch)
    stack = [anatomy.groups] if anatomy.groups else []
    while stack:
        tick()
        groups = stack.pop()
        reason = fault(model, batch, groups, anatomy.sync_attributes, listed)
        if not reason:
            passed += groups
        elif len(groups) == 1:
            left.append(Excluded(groups[0].kind, groups[0].name, reason))
        else:
            stack += [groups[len(groups) // 2 :], groups[: len(groups) // 2]]
    return PruningPlanScope(passed, left, anatomy.sync_attributes)


def rewritable(model: nn.Module, found: PruningPlanScope) -> PruningPlanScope:
    """The groups without a packed, masked or parametrized layer."""
    reasons = untouchable({part.module: model.get_submodule(part.module) for group in found.groups for part in group.parts})
    excluded = {id(group): next((part.module for part in group.parts if part.module in reasons), None) for group in found.groups}
    left = [Excluded(group.kind, group.name, f"{name}: {reasons[name]}") for group in found.groups if (name := excluded[id(group)]) is not None]
    return PruningPlanScope([group for group in found.groups if excluded[id(group)] is None], [*found.left, *left], found.sync_attributes)


def fault(model: nn.Module, batch: Batch, groups: Sequence[Group], sync_attributes: Callable[[nn.Module], None], listed: bool = False) -> str:
    """Why removing units of these groups would not be the same as zeroing them; empty when it is.

    Args:
        listed: the model returns a list of detections for each item.
    """
    if listed and any(not _is_read(model, group) for group in groups):
        return "its width is the width of the model's own output"
    gone = [_some(group) for group in groups]
    large, small = _awake(model), _awake(model)
    cut(small, groups, gone)
    sync_attributes(small)
    layers = _layers_of_kept_width(model, small) if listed else ()
    zero_units(large, groups, gone)
    _narrow_norms(large, small, groups, gone)
    zeroed = observe(large, batch, layers)
    expected = zeroed if listed else observe(model, batch)
    try:
        actual = observe(small, batch, layers)
    except Exception:  # whatever a forward may raise: that it raises is the finding
        return "without some of it the forward fails, because the model's code relies on this width"
    changed = [(tuple(old.shape), tuple(new.shape)) for old, new in zip(expected, actual, strict=False) if old.shape != new.shape]
    if changed or len(expected) != len(actual):
        return f"its width is the width of the model's own output{', ' + str(changed[0][0]) if changed else ''}"
    if all(torch.allclose(new, old, rtol=1e-3, atol=1e-3 * float(old.abs().max()) + 1e-12) for old, new in zip(zeroed, actual, strict=True)):
        return ""
    return NOT_FOLLOWED


def observe(model: nn.Module, batch: Batch, layers: Sequence[str] = ()) -> list[Tensor]:
    """The floating tensors of a model's output, or those of its layers, in order, in eval mode and always under the same seed."""
    seen: list[Any] = []
    hooks = [model.get_submodule(name).register_forward_hook(lambda module, given, output: seen.append(output)) for name in layers]
    try:
        with evaluating(model), random_state_kept():
            torch.manual_seed(0)
            output = batch.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return [tensor.detach().float() for tensor in _leaves(seen if layers else output) if tensor.is_floating_point()]


def lists_items(model: nn.Module, batch: Batch) -> bool:
    """Whether a model returns a mapping for each item, as detectors do that return detections."""
    with evaluating(model):
        output = batch.call(model)
    return isinstance(output, list | tuple) and len(output) == batch.size and all(isinstance(item, Mapping) for item in output)


def _is_read(model: nn.Module, group: Group) -> bool:
    """Whether a layer reads the units of a group."""
    places = [(model.get_submodule(part.module), part.axis) for part in group.parts]
    return any(makes_units(module) and axis != axis_of(module, "out") for module, axis in places)


def _layers_of_kept_width(model: nn.Module, cut_model: nn.Module) -> list[str]:
    """The layers that make as many units after a cut as before."""

    def widths(layer: nn.Module) -> list[Any]:
        return [getattr(layer, name) for name in axis_of(layer, "out").attributes]

    return [name for name, layer in model.named_modules() if makes_units(layer) and widths(layer) == widths(cut_model.get_submodule(name))]


def _leaves(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for name, item in output.items():
            if name not in INNER_OUTPUTS:
                yield from _leaves(item)
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _leaves(item)


def _some(group: Group) -> Tensor:
    """Every third unit of each bundle: scattered, so that a shift of indices shows."""
    gone = torch.zeros(group.bundles, group.steps, dtype=torch.bool)
    gone[:, 1::3] = True
    return gone.flatten()


def _awake(model: nn.Module) -> nn.Module:
    """A copy without all-zero weights, since multiplying by zero looks the same as a missing unit."""
    twin = private_copy(model)
    generator = torch.Generator().manual_seed(0)
    for weight in twin.parameters():
        if weight.is_floating_point() and weight.numel() and not bool(weight.detach().any()):
            weight.data.copy_(torch.rand(weight.shape, generator=generator) * 0.1 + 0.05)
    return twin


def _narrow_norms(large: nn.Module, small: nn.Module, groups: Sequence[Group], gone: Sequence[Tensor]) -> None:
    """Let norms over the units take their statistics without the zeroed ones, as the cut model's do."""
    places: dict[tuple[str, Axis], Tensor] = {}
    for group, units in zip(groups, gone, strict=True):
        for place, going in lost(group, units).items():
            places[place] = places.get(place, torch.zeros_like(going)) | going
    for (name, _), going in places.items():
        norm = large.get_submodule(name)
        if isinstance(norm, nn.GroupNorm) or normalizes_across(norm):
            dim = 1 if isinstance(norm, nn.GroupNorm) else -1
            setattr(norm, "forward", _on_kept(small.get_submodule(name), ~going, dim))  # noqa: B010 - mypy takes an assignment for a mistake


def _on_kept(narrow: nn.Module, keep: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        kept = keep.nonzero().flatten().to(x.device)
        return torch.zeros_like(x).index_copy(dim, kept, narrow(x.index_select(dim, kept)))

    return forward

"""Trial: groups are believed only after a cut has been tried on a copy.

Zeroing a unit's weights in the full model and cutting it away must give the same output. Where it doesn't, or where the
cut model no longer runs, or its output changes shape, the group is not what it seemed (a pad, slice or reshape over
channels; a head that is looked up elsewhere) and is left alone with that reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.models import evaluating
from kdkit_prune.groups import Anatomy, Axis, Group, Left, cut, lost, normalizes_across, silence

INNER_OUTPUTS = (
    "past_key_values", "hidden_states", "attentions", "cross_attentions", "mems",
    "encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions", "decoder_hidden_states", "decoder_attentions",
)  # fmt: skip
"""What transformers hand out beside their output; its shapes follow from the structure."""


def sound(model: nn.Module, batch: Batch, anatomy: Anatomy, tick: Callable[[], None] = lambda: None) -> Anatomy:
    """The same anatomy with only the groups that pass the trial; the others are named in `left`."""
    passed: list[Group] = []
    left = list(anatomy.left)
    stack = [anatomy.groups] if anatomy.groups else []
    while stack:
        tick()
        groups = stack.pop()
        reason = fault(model, batch, groups, anatomy.settle)
        if not reason:
            passed += groups
        elif len(groups) == 1:
            left.append(Left(groups[0].kind, groups[0].name, reason))
        else:
            stack += [groups[len(groups) // 2 :], groups[: len(groups) // 2]]
    return Anatomy(passed, left, anatomy.settle)


def fault(model: nn.Module, batch: Batch, groups: Sequence[Group], settle: Callable[[nn.Module], None]) -> str:
    """Why removing units of these groups would not be the same as zeroing them; empty when it is."""
    gone = [_some(group) for group in groups]
    large, small = _awake(model), _awake(model)
    cut(small, groups, gone)
    settle(small)
    expected = observe(model, batch)
    silence(large, groups, gone)
    _narrow_norms(large, small, groups, gone)
    zeroed = observe(large, batch)
    try:
        actual = observe(small, batch)
    except Exception as error:  # whatever a forward may raise: that it raises is the finding
        return f"without some of it the forward fails ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    changed = [(tuple(old.shape), tuple(new.shape)) for old, new in zip(expected, actual, strict=False) if old.shape != new.shape]
    if changed or len(expected) != len(actual):
        return f"its width is the width of the model's own output{', ' + str(changed[0][0]) if changed else ''}"
    if all(torch.allclose(new, old, rtol=1e-3, atol=1e-3 * float(old.abs().max()) + 1e-12) for old, new in zip(zeroed, actual, strict=True)):
        return ""
    return "its units are also used in a way that can't be followed (a pad, slice, reshape or statistic over them)"


def observe(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The floating tensors of a model's output, in order, in eval mode and always under the same seed."""
    with evaluating(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [tensor.detach().float() for tensor in _leaves(batch.call(model)) if tensor.is_floating_point()]


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
    """A copy in which no weight is all zero: what a zero multiplies can't be told from what is not there."""
    twin = copy.deepcopy(model)
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

"""Answers: which of a model's outputs its task evaluates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdkit.errors import KdError

NAMES = ("logits", "prediction", "predictions", "out", "sentence_embedding", "last_hidden_state")
"""Names of outputs that hold the answer; the first one that a model has counts."""


def main_tensor(output: Any, names: tuple[str, ...] = NAMES, place: str = "") -> Tensor:
    """The tensor that matters in a model's output: the output itself, the one at `place`, the first of `names` in it, or its first tensor.

    Args:
        place: the number or the name of an output, "1" or "logits"; of one within another: "0.logits". An output that is a single
            tensor, as after an export, has no places.

    Raises:
        KdError: the output contains no tensor, or none at that place.

    >>> import torch
    >>> main_tensor({"loss": torch.zeros(()), "logits": torch.ones(2, 3)}).shape
    torch.Size([2, 3])
    >>> main_tensor((torch.zeros(2, 8), torch.ones(2, 3)), place="1").shape
    torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output
    found = output_tensors(output)
    if not found:
        raise KdError(
            f"no tensor in the model's output, {type(output).__name__}", "write a Task whose prediction(output, batch) returns it, and register it with kdkit_tasks"
        )
    if len(found) == 1:
        return next(iter(found.values()))
    if place:
        if place not in found:
            raise KdError(f"the model has no output {place!r}", f"its outputs: {describe(found)}", f"%kd set --output {next(iter(found))}")
        return found[place]
    return found[next((name for name in names if name in found), next(iter(found)))]


def output_tensors(output: Any) -> dict[str, Tensor]:
    """The tensors of an output that have a dimension, by place: the number in a tuple, the key in a mapping, joined by dots.

    >>> import torch
    >>> list(output_tensors((torch.ones(2, 8), {"logits": torch.ones(2, 3), "loss": torch.tensor(0.5)})))
    ['0', '1.logits']
    """
    return dict(_tensors(output, ""))


def _tensors(output: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        if output.ndim:
            yield place, output
        return
    parts = output.items() if isinstance(output, Mapping) else enumerate(output) if isinstance(output, list | tuple) else ()
    for name, part in parts:
        yield from _tensors(part, f"{place}.{name}" if place else str(name))


def describe(outputs: Mapping[str, Tensor]) -> str:
    """The places and shapes of outputs, in one line.

    >>> import torch
    >>> describe({"0": torch.ones(2, 8), "1": torch.ones(2, 3)})
    '0 (batch, 8), 1 (batch, 3)'
    """
    shown = [f"{place} ({', '.join(['batch', *map(str, tensor.shape[1:])])})" for place, tensor in outputs.items()]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


@dataclass(frozen=True)
class Answer:
    """Which of several outputs is the answer.

    Attributes:
        place: as in `main_tensor`; empty for a model with one output, or whose outputs have a standard name.
        reason: how it was found, one line; empty without a choice.
    """

    place: str = ""
    reason: str = ""


def choose_answer(output: Any, labels: Any = None, names: tuple[str, ...] = NAMES) -> Answer:
    """The output that fits the labels best, if a model returns several without a standard name.

    Outputs from which another output is computed, as features are, come last (their graph shows it); then outputs whose shape fits
    the labels come first: as many values for float labels, the fewest classes that hold all labels for integer labels.

    Args:
        output: a model's output for a batch, with its graph if possible.
        labels: of the batch; None if there are none.

    >>> import torch
    >>> choose_answer((torch.zeros(4, 8), torch.zeros(4, 3)), torch.tensor([0, 1, 2, 1])).place
    '1'
    """
    found = output_tensors(output)
    if len(found) < 2 or any(name in found for name in names):
        return Answer()
    floating = {place: tensor for place, tensor in found.items() if tensor.is_floating_point()} or found
    used = {place for place, tensor in floating.items() if any(_computed_from(other, tensor) for other in floating.values() if other is not tensor)}
    label = next((part for part in labels if isinstance(part, Tensor)), None) if isinstance(labels, list | tuple) else labels
    fits = {place: _misfit(tensor, label) for place, tensor in floating.items()}
    order = list(floating)
    chosen = min(order, key=lambda place: (fits[place] is None, place in used, fits[place] or 0, order.index(place)))
    why = "which fits the labels best" if isinstance(label, Tensor) and fits[chosen] is not None else "from which no other output is computed"
    return Answer(chosen, f"the figures are of output {chosen}, {why}; the model returns {describe(found)}; --output chooses another")


def _misfit(tensor: Tensor, labels: Tensor | None) -> int | None:
    """How far an output is from what the labels need, 0 for an exact fit; None if it does not fit."""
    if not isinstance(labels, Tensor):
        return 0
    values, wanted = tensor.shape[1:].numel(), labels.shape[1:].numel()
    if not wanted:
        return None
    if labels.is_floating_point():
        same = values == wanted
        return (0 if same else 1) if same or (values % wanted == 0 and bool(((labels == 0) | (labels == 1)).all())) else None
    least = int(labels.max()) + 1 if labels.numel() else 1
    if values % wanted:
        return None
    classes = values // wanted
    if classes == 1:
        return 0 if least <= 2 else None
    return classes - least if classes >= least and (tensor.ndim == 2 or wanted > 1) else None


def _computed_from(tensor: Tensor, other: Tensor) -> bool:
    """Whether a tensor's graph contains the node that made another tensor."""
    goal, seen, waiting = other.grad_fn, set(), [tensor.grad_fn]
    if goal is None or tensor.grad_fn is goal:
        return False
    while waiting:
        node = waiting.pop()
        if node is goal:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return False

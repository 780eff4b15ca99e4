"""Axes of a model's inputs that may have any size, such as the tokens of a text or the samples of a sound."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kdkit.backends.onnx.signature import Signature
from kdkit.data import Batch

Axes = frozenset[tuple[str, int]]
"""(input, axis), besides the batch axis."""


def open_axes(model: nn.Module, signature: Signature, batch: Batch) -> list[Axes]:
    """The groups of axes along which the model accepts other sizes; the axes of a group change together.

    Inputs of up to three axes are tried: ids (batch, tokens), sounds (batch, samples), sequences of vectors (batch, tokens, width) or
    (batch, channels, samples). Images keep their size, see `image_axes`. Axes of equal length form a group, first those at the same position.

    >>> net = nn.Conv1d(4, 8, 3)
    >>> batch = Batch((torch.zeros(2, 4, 9),))
    >>> [sorted(group) for group in open_axes(net, Signature.of(net, batch, batch.call(net)), batch)]
    [[('input', 2)]]
    """
    found: list[Axes] = []
    for group in _groups(signature.tensors(batch)):
        if not any(group & other for other in found) and any(_accepts(model, each) for each in resized(signature, batch, group)):
            found.append(group)
    return found


def image_axes(model: nn.Module, signature: Signature, batch: Batch) -> list[Axes]:
    """The height and width of each image, or volume, that the model accepts in other sizes.

    >>> net = nn.Conv2d(3, 8, 3)
    >>> batch = Batch((torch.zeros(2, 3, 9, 12),))
    >>> [sorted(group) for group in image_axes(net, Signature.of(net, batch, batch.call(net)), batch)]
    [[('input', 2), ('input', 3)]]
    """
    images = [frozenset((name, axis) for axis in range(2, tensor.dim())) for name, tensor in signature.tensors(batch).items() if tensor.dim() > 3]
    return [group for group in images if any(_accepts(model, each) for each in resized(signature, batch, group))]


def resized(signature: Signature, batch: Batch, axes: Axes) -> Iterator[Batch]:
    """The batch with these axes half as long, and one longer."""
    tensors = signature.tensors(batch)
    for change in (_halved, _lengthened):
        changed = dict(tensors)
        for name, axis in axes:
            changed[name] = change(changed[name], axis)
        yield signature.with_tensors(batch, changed)


def _groups(tensors: dict[str, Tensor]) -> list[Axes]:
    """Axes of one length at one position, then those of one length at any position."""
    axes = {(name, axis): tensor.shape[axis] for name, tensor in tensors.items() if tensor.dim() <= 3 for axis in range(1, tensor.dim()) if tensor.shape[axis] > 1}
    by_place = [frozenset(each for each, size in axes.items() if (each[1], size) == key) for key in dict.fromkeys((axis, size) for (_, axis), size in axes.items())]
    by_size = [frozenset(each for each, size in axes.items() if size == length) for length in dict.fromkeys(axes.values())]
    return list(dict.fromkeys((*by_place, *by_size)))


def _halved(tensor: Tensor, axis: int) -> Tensor:
    return tensor.narrow(axis, 0, max(1, tensor.shape[axis] // 2))


def _lengthened(tensor: Tensor, axis: int) -> Tensor:
    return torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)


def _accepts(model: nn.Module, batch: Batch) -> bool:
    try:
        batch.call(model)
    except Exception:  # any model may refuse a size in any way
        return False
    return True

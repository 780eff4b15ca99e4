"""True boxes: what detection data state about the objects of each picture, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.data.tensors import as_tensor
from kdkit.errors import KdError

PARTS = {"masks": torch.uint8, "keypoints": torch.float32}
"""What a mapping may hold of each object besides its box and class: masks (n, height, width), and keypoints (n, points, 3)."""


def true_boxes(items: Sequence[Mapping[str, Any]]) -> Tensor | tuple[Tensor, ...]:
    """The class and the box of each object, (batch, objects, 5) floats, filled up with class -100; with masks or keypoints a tuple of them all.

    Raises:
        KdError: a mapping has no boxes and classes, or not one class, mask or list of keypoints for each box.

    >>> true_boxes([{"boxes": [[0.0, 0.0, 1.0, 2.0]], "labels": [3]}, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}])[:, 0, 0]
    tensor([   3., -100.])
    >>> boxes, masks = true_boxes([{"boxes": [[0.0, 0.0, 1.0, 2.0]], "labels": [3], "masks": torch.ones(1, 4, 4)}])
    >>> masks.dtype, masks.shape
    (torch.uint8, torch.Size([1, 1, 4, 4]))
    """
    rows = [_classes_and_boxes(item) for item in items]
    filled = _filled(rows)
    filled[..., 0].masked_fill_(torch.arange(filled.shape[1]) >= torch.tensor([[len(row)] for row in rows]), -100.0)
    parts = [_part(name, rows, items) for name in PARTS if name in items[0]]
    return (filled, *parts) if parts else filled


def split_boxes(labels: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The boxes and, by name, the other parts of what `true_boxes` returns as a tuple."""
    boxes, *parts = labels
    return boxes, {next(name for name, dtype in PARTS.items() if part.dtype == dtype): part for part in parts}


def _classes_and_boxes(item: Mapping[str, Any]) -> Tensor:
    classes = next((item[name] for name in ("class_labels", "labels") if name in item), None)
    if classes is None or "boxes" not in item:
        raise KdError(f"the labels: mappings of {', '.join(map(str, item))}", 'give for each item a mapping with "boxes" (n, 4) and "labels" (n,)')
    boxes, classes = as_tensor(item["boxes"], "boxes").float().reshape(-1, 4), as_tensor(classes, "labels of boxes").float().flatten()
    if len(boxes) != len(classes):
        raise KdError(f"the labels: {len(boxes)} boxes and {len(classes)} classes of an item", "give one class for each box")
    return torch.cat([classes[:, None], boxes], 1)


def _part(name: str, boxes: Sequence[Tensor], items: Sequence[Mapping[str, Any]]) -> Tensor:
    rows = []
    for row, item in zip(boxes, items, strict=True):
        if name not in item:
            raise KdError(f"the labels: {name} of some items and not of others", f"give {name} for each item, or for none")
        held = as_tensor(item[name], name).to(PARTS[name])
        if len(held) != len(row):
            raise KdError(f"the labels: {len(row)} boxes and {len(held)} {name} of an item", f"give {name} for each box")
        rows.append(held)
    shapes = sorted({tuple(row.shape[1:]) for row in rows if len(row)})
    if len(shapes) > 1:
        raise KdError(f"the labels: {name} of different shapes, {shapes[0]} and {shapes[-1]}", "pad or resize them, with the pictures and boxes, to one size")
    return _filled([row if len(row) else row.new_zeros(0, *(shapes[0] if shapes else row.shape[1:])) for row in rows])


def _filled(rows: Sequence[Tensor]) -> Tensor:
    """The rows of each item, filled up with zeros to one number, of at least 1."""
    filled = rows[0].new_zeros(len(rows), max(1, *map(len, rows)), *rows[0].shape[1:])
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return filled

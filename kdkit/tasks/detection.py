"""The detection task: boxes with classes.

Carion et al., "End-to-End Object Detection with Transformers", 2020 (arXiv:2005.12872), for the loss of dense heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.data.true_boxes import split_boxes
from kdkit.errors import KdError
from kdkit.tasks.boxes import assign, corners, generalized_iou, hits
from kdkit.tasks.task import IGNORED, Task, at_least_float32

BOXES = ("pred_boxes", "boxes")
"""Names of outputs that hold the boxes of a dense head."""

TARGETS = ("targets", "target")
"""Names of the parameter by which a detector takes the true boxes in training, as torchvision's do."""

BACKGROUND, L1, GIOU = 0.1, 5.0, 2.0
"""DETR's weights: of the background class, and of the two distances of boxes."""

MOST = 100
"""The detections of an item that `prediction` holds, as many as COCO's evaluation counts."""


class Detection(Task):
    """Boxes with classes: F1 of the detections; the loss is DETR's for dense heads, and the model's own for lists of detections.

    A model returns a dense head, class scores (batch, places, classes + 1) with the background last and boxes (batch, places, 4),
    as a mapping with `logits` and `pred_boxes` or as a pair; or for each item a mapping of `boxes` (n, 4), `scores` (n,) and `labels`
    (n,). Labels are (batch, n, 5) floats: the class and the box, with class -100 for what is filled up; data makes them of lists of
    mappings with `boxes` and `labels` or `class_labels`. `masks` and `keypoints` of these mappings are passed to a model that returns
    its losses, such as Mask R-CNN; the figures are of boxes.

    A detection counts from a score of 0.5; it is a hit if it has the class of a box that no better detection has hit, with an
    intersection over union of 0.5. Mean average precision is the measure `map`, which needs torchmetrics.

    The loss of an item with a dense head: each box is assigned to one place, at the least total distance; cross entropy of the places
    (background weighs 0.1) + for assigned places 5 · L1 + 2 · (1 - generalized IoU), mean over the item's boxes. A model that returns
    lists is called in training with the true boxes as its `targets`, and returns its losses, as torchvision's detectors do; their sum,
    a mean over the batch, is the loss of each item.

    Args:
        form: of boxes in outputs and labels: "xyxy" corners, or "cxcywh" centre and size; default: found in the first output.
        sets: the places of a dense head have no order, as DETR's queries; False: each place belongs to a region of the picture.
            Default: found by calling the model with a larger picture, which gives more places of regions, and as many queries.
    """

    name = "detection"
    metric = "f1"
    better = "higher"
    predicts = "boxes"

    def __init__(self, name: str = "", form: Literal["", "xyxy", "cxcywh"] = "", sets: bool | None = None):
        super().__init__(name)
        self.form, self.sets = form, sets

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """A dense head's class scores and boxes side by side, (batch, places, classes + 1 + 4).

        Of detections of single items the best 100, (batch, 100, 6): class, score and box, filled up with class -100 and zeros.

        Raises:
            KdError: the model returns its losses, as in training.
        """
        head = dense_head(output)
        if head is not None:
            return torch.cat([at_least_float32(part) for part in head], -1)
        if not is_detection(output):
            raise KdError(f"{self.name}: the output holds no boxes with classes", "return logits and pred_boxes, or for each item boxes, scores and labels")
        return torch.stack([_padded(*found) for found in self.detections(output)])

    def detections(self, output: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each item: corners of boxes (n, 4), scores (n,) and classes (n,), the best first."""
        head = dense_head(output)
        if head is None:
            found = [(at_least_float32(item["boxes"]), item["scores"], item["labels"]) for item in output]
        else:
            scores, classes = at_least_float32(head[0]).softmax(-1)[..., :-1].max(-1)
            found = list(zip(at_least_float32(head[1]), scores, classes, strict=True))
        ordered = [(boxes, scores, classes, scores.argsort(descending=True)) for boxes, scores, classes in found]
        return [(corners(boxes[order], self.form), scores[order], classes[order]) for boxes, scores, classes, order in ordered]

    def true_boxes(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """For each item: corners of the true boxes (n, 4), and their classes (n,)."""
        labels = self.labels(batch)
        if labels.ndim != 3 or labels.shape[-1] != 5:
            raise KdError(f"{self.name}: labels {tuple(labels.shape)} are no boxes", "give for each item a mapping with boxes (n, 4) and labels (n,)")
        return [(corners(item[item[:, 0] != IGNORED, 1:], self.form), item[item[:, 0] != IGNORED, 0].long()) for item in labels]

    def relative_boxes(self, batch: Batch) -> list[Tensor]:
        """For each item the corners of its true boxes, (n, 4), as shares of the picture's width and height.

        Boxes are taken for pixels if a coordinate of the batch exceeds 2, else for shares.

        >>> batch = Batch((torch.zeros(1, 3, 10, 20),), labels=torch.tensor([[[0.0, 5.0, 5.0, 20.0, 10.0]]]))
        >>> Detection(form="xyxy").relative_boxes(batch)
        [tensor([[0.2500, 0.5000, 1.0000, 1.0000]])]
        """
        boxes = [found for found, _ in self.true_boxes(batch)]
        if not any(bool((found > 2).any()) for found in boxes):
            return boxes
        picture = picture_of(batch)
        if picture is None:
            raise KdError(f"{self.name}: the batch has no picture, (batch, channels, height, width), that the boxes could be on: {batch}")
        height, width = picture.shape[-2:]
        return [found / found.new_tensor([width, height, width, height]) for found in boxes]

    def labels(self, batch: Batch) -> Tensor:
        return split_boxes(batch.labels)[0] if isinstance(batch.labels, tuple) else super().labels(batch)

    def training_batch(self, batch: Batch, model: nn.Module) -> Batch:
        if not self.loss_from_model:
            return batch
        parts = split_boxes(batch.labels)[1] if isinstance(batch.labels, tuple) else {}
        targets = [
            {"boxes": boxes, "labels": classes} | {name: part[number][self.labels(batch)[number, :, 0] != IGNORED] for name, part in parts.items()}
            for number, (boxes, classes) in enumerate(self.true_boxes(batch))
        ]
        flat = next((box for each in targets for box in each["boxes"] if not bool((box[2:] > box[:2]).all())), None)
        if flat is not None:
            numbers = ", ".join(f"{number:g}" for number in flat.tolist())
            raise KdError(f"{self.name}: a true box is empty: ({numbers}), as corners x1, y1, x2, y2", "leave such boxes out of the data")
        return replace(batch, kwargs={**batch.kwargs, targets_of(model): targets})

    def losses(self, output: Any, batch: Batch) -> Tensor:
        if self.loss_from_model:
            return self._given_losses(output, batch)
        head = self.prediction(output, batch)
        return torch.stack([self._loss(item[:, :-4], item[:, -4:], label) for item, label in zip(head, self.labels(batch).to(head.device), strict=True)])

    def _given_losses(self, output: Any, batch: Batch) -> Tensor:
        """The sum of the losses that a model in train mode returns, for each item."""
        losses = list(output.values()) if isinstance(output, Mapping) else []
        if not losses or not all(isinstance(loss, Tensor) and loss.numel() == 1 for loss in losses):
            raise KdError(f"{self.name}: the model gives its losses only in training, and here it returned {_kind(output)}", NO_PLACES)
        return at_least_float32(torch.stack([loss.reshape(()) for loss in losses])).sum().expand(batch.size)

    def _loss(self, logits: Tensor, boxes: Tensor, label: Tensor) -> Tensor:
        label = label[label[:, 0] != IGNORED]
        classes, true = label[:, 0].long(), label[:, 1:].to(boxes.dtype)
        if classes.numel() and not bool(((classes >= 0) & (classes < logits.shape[-1] - 1)).all()):
            wrong = classes[(classes < 0) | (classes >= logits.shape[-1] - 1)]
            raise KdError(f"{self.name}: a label is {int(wrong[0])}, and the model has {logits.shape[-1] - 1} classes and the background")
        apart = self.distances(boxes, true)
        places, matched = assign(apart - logits.softmax(-1)[:, classes])
        wanted = torch.full((len(logits),), logits.shape[-1] - 1, device=logits.device)
        wanted[places] = classes[matched]
        weights = torch.ones(logits.shape[-1], device=logits.device, dtype=logits.dtype)
        weights[-1] = BACKGROUND
        return F.cross_entropy(logits, wanted, weights) + apart[places, matched].sum() / max(len(classes), 1)

    def distances(self, boxes: Tensor, others: Tensor) -> Tensor:
        """DETR's distance of each pair of boxes, 5 · L1 + 2 · (1 - generalized IoU): (n, 4) and (m, 4) in the task's form -> (n, m)."""
        return L1 * torch.cdist(boxes, others, 1) + GIOU * (1 - generalized_iou(corners(boxes, self.form), corners(others, self.form)))

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        pairs = zip(self._certain(output), self.true_boxes(batch), strict=True)
        counted = torch.tensor([[hits(*found, *true), len(found[1]), len(true[1])] for found, true in pairs], dtype=torch.float32)
        figures = dict(zip(("hits", "found", "true"), counted.unbind(1), strict=True))
        return figures if dense_head(output) is None else figures | {"loss": self.losses(output, batch)}

    def _certain(self, output: Any) -> list[tuple[Tensor, Tensor]]:
        """The boxes and classes of each item's detections with a score of at least 0.5."""
        return [(boxes[scores >= 0.5].cpu(), classes[scores >= 0.5].cpu()) for boxes, scores, classes in self.detections(output)]

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        whole = means["found"] + means["true"]
        return {"f1": float(2 * means["hits"] / whole) if whole else 1.0} | ({"loss": float(means["loss"])} if "loss" in means else {})

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """F1 of one model's detections with the other's as true boxes, (batch,); 1 if neither has any."""
        both = zip(self._certain(output), self._certain(other), strict=True)
        return torch.tensor([2 * hits(*one, *two) / count if (count := len(one[1]) + len(two[1])) else 1.0 for one, two in both])


NO_PLACES = "detections of single items have no fixed places; a dense head has: class scores (batch, places, classes + 1) and boxes (batch, places, 4)"
"""A hint for what needs a dense head."""


def dense_head(output: Any) -> tuple[Tensor, Tensor] | None:
    """Class scores (batch, places, classes + 1) and boxes (batch, places, 4) in a model's output; None if it has no such pair.

    >>> [part.shape[-1] for part in dense_head({"logits": torch.zeros(2, 5, 3), "pred_boxes": torch.zeros(2, 5, 4)})]
    [3, 4]
    """
    if isinstance(output, Mapping):
        parts: list[Any] = [output.get("logits"), next((output[name] for name in BOXES if output.get(name) is not None), None)]
    else:
        parts = list(output) if isinstance(output, list | tuple) else []
    if len(parts) != 2 or not all(isinstance(part, Tensor) and part.ndim == 3 and part.is_floating_point() for part in parts):
        return None
    one, two = parts
    if two.shape[-1] != 4 and one.shape[-1] == 4:
        one, two = two, one
    return (one, two) if two.shape[-1] == 4 and one.shape[:2] == two.shape[:2] else None


def is_detection(output: Any) -> bool:
    """Whether an output is boxes with classes: a dense head with named boxes, or a list of detections."""
    if isinstance(output, list | tuple) and output and all(isinstance(item, Mapping) for item in output):
        return all({"boxes", "scores", "labels"} <= set(item) for item in output)
    return isinstance(output, Mapping) and dense_head(output) is not None


def targets_of(model: nn.Module) -> str:
    """The parameter by which a model takes the true boxes in training, as torchvision's detectors do; empty if it has none."""
    parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
    return next((name for name in TARGETS if name in parameters), "")


def picture_of(batch: Batch) -> Tensor | None:
    """The pictures of a batch, (batch, channels, height, width); None if it has none."""
    return next((each for each in (*batch.args, *batch.kwargs.values()) if isinstance(each, Tensor) and each.ndim == 4 and each.is_floating_point()), None)


def _padded(boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    rows = torch.cat([classes[:MOST, None].to(boxes.dtype), scores[:MOST, None].to(boxes.dtype), boxes[:MOST]], 1)
    filled = rows.new_zeros(MOST - len(rows), 6)
    filled[:, 0] = IGNORED
    return torch.cat([rows, filled])


def _kind(output: Any) -> str:
    return "detections" if is_detection(output) else f"a {type(output).__name__}"

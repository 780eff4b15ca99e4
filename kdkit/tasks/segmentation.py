"""The segmentation task: one class for each pixel, or voxel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kdkit.data import Batch
from kdkit.tasks.classification import TokenClassification
from kdkit.tasks.task import IGNORED, at_least_float32


class Segmentation(TokenClassification):
    """One class per pixel: cross entropy, the mean over the classes of intersection / union, and the accuracy of pixels.

    The model returns scores, (batch, classes, height, width), also of more or fewer dimensions; one channel, (batch, 1, height, width)
    or (batch, height, width), is the logit of a binary mask. Labels are class numbers, (batch, height, width) or (batch, 1, height,
    width), with -100 for pixels that do not count; or probabilities with the shape of the scores. Scores of a lower resolution than
    the labels are interpolated, as transformers does. Classes that are in neither the predictions nor the labels of the data set
    have no share in the mean.

    Args:
        probabilities: the model ends in softmax or sigmoid, so the task takes the logarithm of its outputs.
        ignore_index: another label that is ignored, such as 255.

    >>> import torch
    >>> mask = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    >>> batch = Batch((mask,), labels=mask)
    >>> values = Segmentation().scores(4 * torch.tensor([[[[-1.0, 1.0], [1.0, -1.0]]]]), batch)
    >>> figures = Segmentation().summary({name: each.double().mean((0, 1)) for name, each in values.items()})
    >>> round(figures["mean_iou"], 3), figures["accuracy"]
    (0.583, 0.75)
    """

    name = "segmentation"
    metric = "mean_iou"
    headlines = ("accuracy",)

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Logits, (batch, pixels, classes), of at least two classes."""
        found = self.answer(output)
        found = found[:, None] if found.ndim == 3 and not _is_line(batch) else found
        size = _size_of(found, batch)
        if size is not None and size != found.shape[2:]:
            found = F.interpolate(at_least_float32(found), size=size, mode="bilinear", align_corners=False)
        return self._scores_of_classes(found.flatten(2).transpose(1, 2))

    def labels(self, batch: Batch) -> Tensor:
        """Class numbers, (batch, pixels), with -100 for pixels that do not count; or probabilities, (batch, pixels, classes)."""
        labels = self.given_labels(batch)
        return labels.flatten(2).transpose(1, 2) if _one_per_class(labels) else labels.flatten(1)

    def mask(self, batch: Batch) -> Tensor | None:
        if not isinstance(batch.labels, Tensor):
            return None
        labels = self.labels(batch)
        return labels != IGNORED if labels.ndim == 2 else (labels != IGNORED).all(-1)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        found = super().scores(output, batch)
        logits, labels = self._fitted(output, batch)
        true = labels.argmax(-1) if labels.is_floating_point() else labels.clamp_min(0)
        one, two = F.one_hot(logits.argmax(-1), logits.shape[-1]).bool(), F.one_hot(true, logits.shape[-1]).bool()
        return {**found, "intersection": (one & two).float(), "union": (one | two).float()}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        there = means["union"] > 0
        figures = {"mean_iou": float((means["intersection"][there] / means["union"][there]).mean())}
        return figures | {name: float(means[name]) for name in ("accuracy", "loss")}


def _one_per_class(labels: Tensor) -> bool:
    """Whether labels have a channel for each class."""
    return labels.ndim > 3 and labels.shape[1] > 1 and labels.is_floating_point()


def _is_line(batch: Batch | None) -> bool:
    """Whether labels are of places in a line, (batch, length), so that scores are (batch, classes, length)."""
    return batch is not None and isinstance(batch.labels, Tensor) and batch.labels.ndim == 2


def _size_of(found: Tensor, batch: Batch | None) -> tuple[int, ...] | None:
    """The height and width of the labels; None if they don't show it."""
    labels = None if batch is None else batch.labels
    if not isinstance(labels, Tensor) or found.ndim != 4 or labels.ndim < 3:
        return None
    return tuple(labels.shape[-2:])

"""The CTC task: a sequence of labels for a longer sequence of frames, without an alignment of labels to frames.

Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification", 2006.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks.classification import TokenClassification
from kdkit.tasks.task import IGNORED, at_least_float32

MASKS = ("attention_mask", "frames_mask", "frame_mask")
"""Inputs that mark the steps of an item that are not padding, (batch, steps); the first one in a batch is used."""


class CTC(TokenClassification):
    """A sequence of labels per item; the model returns scores of frames, (batch, frames, classes). CTC loss and label error rate.

    Labels are class numbers, (batch, length), padded with -100 on the right; an item with only -100 has no labels. The
    `attention_mask` of the inputs marks the frames that count; default: all frames. Padding must be on the right. The loss of
    an item is -log p(labels | frames) / number of labels, like torch's reduction "mean". Labels that need more frames than the
    item has can't be aligned: such an item has no gradient and a loss of 0, and the figure `unalignable` is the share of such
    items. If a batch of several items has only such items, that is an error. The label error rate is edits / labels of the
    greedy decoding over the data set.

    For a teacher's signals it is a classification of frames: `distill soft` compares frame by frame.

    Args:
        blank: the blank class.
        frames: number of input steps -> number of frames, (n,) int64 -> (n,) int64, for a model with strides.

    >>> batch = Batch((torch.zeros(1, 4, 1),), labels=torch.tensor([[1, 2]]))
    >>> logits = 9.0 * torch.eye(3)[torch.tensor([[1, 1, 0, 2]])]
    >>> CTC().summary({name: values.double().mean() for name, values in CTC().scores(logits, batch).items()})["label_error_rate"]
    0.0
    """

    name = "ctc"
    metric = "label_error_rate"
    better = "lower"

    def __init__(self, name: str = "", blank: int = 0, frames: Callable[[Tensor], Tensor] = lambda steps: steps):
        super().__init__(name)
        self.blank, self.frames = blank, frames

    def labels(self, batch: Batch) -> Tensor:
        """Class numbers, (batch, length), padded with -100."""
        # TokenClassification would apply the mask of frames to the labels
        labels = self.given_labels(batch)
        if labels.ndim != 2 or labels.is_floating_point():
            raise KdError(
                f"{self.name}: labels {tuple(labels.shape)} of {str(labels.dtype).removeprefix('torch.')} are no sequences of classes",
                f"give class numbers, (batch, length), padded with {IGNORED}",
            )
        return labels

    def mask(self, batch: Batch) -> Tensor | None:
        """The frames that count, (batch, frames) bool; None without a mask: all count."""
        lengths = self._lengths(batch)
        if lengths is None:
            return None
        counts, width = lengths
        return torch.arange(width, device=counts.device) < counts[:, None]

    def labelled(self, batch: Batch) -> Tensor | None:
        return None if batch.labels is None else (self.labels(batch) != IGNORED).any(1)

    def losses(self, output: Any, batch: Batch) -> Tensor:
        """(batch,): -log p(labels | frames) / number of labels; 0 for an item without labels, or with more labels than its frames allow."""
        logits, labels, lengths, targets = self._fitted_sequences(output, batch)
        alignable = _needed(labels) <= lengths
        if len(labels) > 1 and not (alignable | (targets == 0)).any():
            raise KdError(
                f"{self.name}: no item of the batch can be aligned: {int(_needed(labels)[0])} frames are needed and there are {int(lengths[0])}",
                "CTC needs at least one frame per label, and one more between two equal labels",
                "check the model's strides, the mask of frames, and the padding of the labels",
            )
        return self._normalized(logits, labels, lengths, targets)

    def _normalized(self, logits: Tensor, labels: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        inside = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
        # logits of padding may be infinite, and must not reach the gradient
        scores = at_least_float32(torch.where(inside[..., None], logits, 0.0)).log_softmax(-1).transpose(0, 1)
        real = labels != IGNORED
        summed = F.ctc_loss(scores, labels.masked_fill(~real, self._filler(logits)), lengths, targets, blank=self.blank, reduction="none", zero_infinity=True)
        return torch.where((_needed(labels) <= lengths) & (targets > 0), summed / targets.clamp_min(1), 0.0)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        logits, labels, lengths, targets = self._fitted_sequences(output, batch)
        decoded = greedy(logits, lengths, self.blank)
        edits = [edit_distance(one, label[label != IGNORED].tolist()) for one, label in zip(decoded, labels, strict=True)]
        return {
            "edits": torch.tensor(edits, device=logits.device).float(),
            "labels": targets.float(),
            "unalignable": (_needed(labels) > lengths).float(),
            "loss": self._normalized(logits, labels, lengths, targets),
        }

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        # an item that can't be aligned has no loss, and must not lower the mean
        lost = float(means["unalignable"])
        figures = {"label_error_rate": float(means["edits"] / means["labels"])}
        figures |= {"loss": float(means["loss"] / (1 - means["unalignable"]))} if lost < 1 else {}
        return figures | ({"unalignable": lost} if lost else {})

    def decode(self, output: Any, batch: Batch) -> list[list[int]]:
        """The labels of each item by greedy decoding: the best class of each frame, without repeats and blanks."""
        logits = self.prediction(output, batch)
        return greedy(logits, self._frames_of(logits, batch), self.blank)

    def _lengths(self, batch: Batch) -> tuple[Tensor, int] | None:
        """The number of frames of each item, (batch,), and of the padded batch."""
        mask = next((batch.kwargs[name] for name in MASKS if isinstance(batch.kwargs.get(name), Tensor) and batch.kwargs[name].ndim == 2), None)
        if mask is None:
            return None
        real = mask != 0
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise KdError(f"{self.name}: the mask of frames has padding on the left or in the middle", "pad on the right: padding_side='right'")
        both = self.frames(torch.cat([real.sum(1), torch.tensor([mask.shape[1]], device=mask.device)]))
        return both[:-1], int(both[-1])

    def _frames_of(self, logits: Tensor, batch: Batch) -> Tensor:
        found = self._lengths(batch)
        if found is None:
            return torch.full((len(logits),), logits.shape[1], device=logits.device)
        if found[1] != logits.shape[1]:
            raise KdError(
                f"{self.name}: the mask gives {found[1]} frames, and the model returns {logits.shape[1]}",
                "state the number of frames for a number of steps: --task {kdkit.tasks.CTC(frames=lambda steps: steps // 2)}",
            )
        return found[0].to(logits.device)

    def _fitted_sequences(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, labels, and each item's number of frames and of labels."""
        logits = self.prediction(output, batch)
        if logits.ndim != 3:
            raise KdError(f"{self.name}: outputs {tuple(logits.shape)} are no frames of scores", "the model must return (batch, frames, classes)")
        labels = self.labels(batch).to(logits.device)
        real = labels != IGNORED
        wrong = real & ((labels < 0) | (labels >= logits.shape[-1]) | (labels == self.blank))
        if wrong.any():
            problem = f"the blank, {self.blank}" if (labels[wrong] == self.blank).any() else f"{int(labels[wrong][0])}, and the model has {logits.shape[-1]} classes"
            raise KdError(
                f"{self.name}: a label is {problem}", f"labels are classes other than the blank, padded with {IGNORED}; --task {{kdkit.tasks.CTC(blank=n)}} moves it"
            )
        if (real[:, 1:] & ~real[:, :-1]).any():
            raise KdError(f"{self.name}: {IGNORED} comes before a label", "pad the labels on the right")
        return logits, labels, self._frames_of(logits, batch), real.sum(1)

    def _filler(self, logits: Tensor) -> int:
        """A class, other than the blank, that replaces the padding of labels."""
        return 0 if self.blank else min(1, logits.shape[-1] - 1)


def _needed(labels: Tensor) -> Tensor:
    """The least number of frames for an item's labels, (batch,): one per label, and a blank between two equal labels."""
    real = labels != IGNORED
    return real.sum(1) + ((labels[:, 1:] == labels[:, :-1]) & real[:, 1:]).sum(1)


def greedy(logits: Tensor, lengths: Tensor, blank: int = 0) -> list[list[int]]:
    """The best class of each frame, without repeats and then without blanks.

    Args:
        logits: (batch, frames, classes).
        lengths: number of frames that count, (batch,).

    >>> greedy(torch.eye(3)[torch.tensor([[1, 1, 0, 1, 2]])], torch.tensor([5]))
    [[1, 1, 2]]
    """
    found = []
    for path, length in zip(logits.argmax(-1).cpu(), lengths.tolist(), strict=True):
        found.append([each for each in torch.unique_consecutive(path[:length]).tolist() if each != blank])
    return found


def edit_distance(one: Sequence[int], two: Sequence[int]) -> int:
    """The least number of insertions, deletions and replacements that turn one sequence into the other (Levenshtein, 1966).

    >>> edit_distance([1, 2, 3], [1, 3, 3, 4])
    2
    """
    row = list(range(len(two) + 1))
    for index, left in enumerate(one, 1):
        previous, row[0] = row[0], index
        for place, right in enumerate(two, 1):
            previous, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, previous + (left != right))
    return row[-1]

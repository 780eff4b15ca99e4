"""Detection: boxes with classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data.batch import as_batch
from kdkit.errors import KdError
from kdkit.session.session import Session
from kdkit.tasks import Detection, infer_task
from kdkit.tasks.boxes import generalized_iou

TARGETS: tuple[dict[str, Tensor], ...] = (
    {"boxes": torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]), "labels": torch.tensor([0, 1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
)
PICTURES = (torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))


class Lists(nn.Module):
    """Detections of single items, as torchvision's detectors return them in eval mode: the true boxes of the first, and a wrong class."""

    def __init__(self, score: float = 0.9):
        super().__init__()
        self.score = nn.Parameter(torch.tensor(score))

    def forward(self, pictures: Tensor) -> list[dict[str, Tensor]]:
        found = {"boxes": TARGETS[0]["boxes"], "labels": torch.tensor([0, 0]), "scores": self.score.repeat(2)}
        return [found if not number else {name: part[:0] for name, part in found.items()} for number in range(len(pictures))]


def test_lists_of_pictures_and_targets_become_tensors() -> None:
    batch = as_batch((PICTURES, TARGETS))
    assert [tuple(part.shape) for part in batch.args] == [(2, 3, 8, 8)]
    assert batch.labels[:, :, 0].tolist() == [[0, 1], [-100, -100]]


@pytest.mark.parametrize(
    ("pictures", "targets", "reported"),
    [
        ((torch.zeros(3, 8, 8), torch.zeros(3, 9, 8)), TARGETS, "the pictures: items of different shapes"),
        (PICTURES, ({"box": 1}, {"box": 2}), "mappings of box"),
        (PICTURES, ({"boxes": torch.zeros(2, 4), "labels": torch.zeros(1)},) * 2, "2 boxes and 1 classes"),
    ],
)
def test_targets_that_are_no_boxes_are_refused(pictures: Any, targets: Any, reported: str) -> None:
    with pytest.raises(KdError, match=reported):
        as_batch((pictures, targets))


def test_detections_of_single_items_are_measured_by_their_hits() -> None:
    session = Session(Lists(), eval=[(PICTURES, TARGETS)], measures=("quality", "agreement"))
    assert session.task is not None
    assert session.task.name == "detection"
    # 1 hit, of 2 detections and 2 true boxes
    assert session.head["f1"] == pytest.approx(0.5)
    assert session.head["agreement"] == 1
    assert Session(Lists(score=0.4), eval=[(PICTURES, TARGETS)], measures=("quality",)).head["f1"] == 0


def test_a_dense_head_that_is_right_has_no_loss_of_boxes_and_a_wrong_one_has_detrs() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])
    logits = 30.0 * torch.tensor([[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]])
    batch = as_batch((PICTURES[:1], TARGETS[:1]))
    task = Detection()
    assert float(task.losses({"logits": logits, "boxes": boxes}, batch)) == pytest.approx(0, abs=1e-5)
    moved = boxes + torch.tensor([0.1, 0.0, 0.1, 0.0])
    apart = generalized_iou(moved[0], boxes[0]).diagonal()[:2]
    assert float(task.losses({"logits": logits, "boxes": moved}, batch)) == pytest.approx(float((5 * 0.2 + 2 * (1 - apart)).mean()), rel=1e-4)
    assert task.scores({"logits": logits, "boxes": boxes}, batch)["hits"].tolist() == [2]


def test_named_boxes_of_a_dense_head_are_centres_and_sizes() -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": torch.zeros(len(x), 5, 3), "pred_boxes": torch.zeros(len(x), 5, 4)}

    found = infer_task(Head(), as_batch((PICTURES, TARGETS)))
    assert isinstance(found, Detection)
    assert found.form == "cxcywh"

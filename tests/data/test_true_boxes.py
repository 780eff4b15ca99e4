"""True boxes: what a mapping states of each object becomes tensors, and what does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdkit.data import Batch, as_batch
from kdkit.data.true_boxes import split_boxes, true_boxes
from kdkit.errors import KdError
from kdkit.tasks import Detection


def item(number: int, **parts: Any) -> dict[str, Any]:
    boxes = torch.arange(4.0 * number).reshape(number, 4)
    return {"boxes": boxes, "labels": torch.arange(number), **parts}


def masks(number: int, side: int = 3) -> torch.Tensor:
    return torch.arange(number).reshape(-1, 1, 1).expand(-1, side, side) > 0


def test_boxes_are_filled_up_with_an_ignored_class():
    made = true_boxes([item(2), item(0), item(1)])
    assert made.shape == (3, 2, 5)
    assert made[..., 0].tolist() == [[0, 1], [-100, -100], [0, -100]]
    assert torch.equal(made[0, :, 1:], item(2)["boxes"])


def test_masks_and_keypoints_stay_with_their_boxes():
    keypoints = torch.rand(2, 5, 3)
    boxes, parts = split_boxes(true_boxes([item(2, masks=masks(2), keypoints=keypoints), item(0, masks=masks(0), keypoints=keypoints[:0])]))
    assert boxes.shape == (2, 2, 5)
    assert torch.equal(parts["masks"][0].bool(), masks(2))
    assert torch.equal(parts["keypoints"][0], keypoints)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([item(1, masks=masks(1)), item(1)], "masks of some items and not of others"),
        ([item(2, masks=masks(1))], "2 boxes and 1 masks of an item"),
        ([item(1, masks=masks(1)), item(1, masks=masks(1, side=4))], r"masks of different shapes, \(3, 3\) and \(4, 4\)"),
        ([{"boxes": torch.zeros(2, 4), "labels": torch.zeros(1)}], "2 boxes and 1 classes"),
        ([{"labels": torch.zeros(1)}], "mappings of labels"),
    ],
)
def test_what_does_not_fit_is_named(items, message):
    with pytest.raises(KdError, match=message):
        true_boxes(items)


def test_a_model_that_returns_its_losses_receives_the_masks_of_each_item():
    batch = as_batch(([torch.zeros(3, 3, 3)] * 2, [item(2, masks=masks(2)), item(1, masks=masks(1))]))
    assert isinstance(batch, Batch)
    task = Detection()
    task.loss_from_model = True

    class Detector(torch.nn.Module):
        def forward(self, images, targets=None):
            return targets

    received = task.training_batch(with_sizes(batch), Detector()).kwargs["targets"]
    assert [each["masks"].tolist() for each in received] == [masks(2).int().tolist(), masks(1).int().tolist()]
    assert task.labels(batch).shape == (2, 2, 5)


def with_sizes(batch: Batch) -> Batch:
    """The batch with boxes that are not empty."""
    batch.labels[0][..., 3:] += 10
    return batch

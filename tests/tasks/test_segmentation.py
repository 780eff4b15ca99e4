"""Segmentation: one class for each pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.tasks import Segmentation
from tests.fixtures.outputs import outputs, seeded

LOGITS, LABELS = torch.randn(6, 3, 4, 5, generator=seeded(0)), torch.randint(0, 3, (6, 4, 5), generator=seeded(1))


def naive_iou(predicted: Tensor, labels: Tensor, classes: int, counted: Tensor) -> float:
    shares = []
    for number in range(classes):
        one, two = (predicted == number) & counted, (labels == number) & counted
        if (one | two).any():
            shares.append(float((one & two).sum() / (one | two).sum()))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("batch_size", [2, 6])
@pytest.mark.parametrize("ignored", [-100, 255])
def test_the_figures_are_their_formulas_over_the_pixels_that_count(batch_size: int, ignored: int) -> None:
    counted = torch.rand(LABELS.shape, generator=seeded(2)) > 0.3
    labels = LABELS.where(counted, ignored)
    figures = Segmentation(ignore_index=ignored).evaluate(outputs, adopt_data((LOGITS, labels), batch_size))
    predicted = LOGITS.argmax(1)
    assert figures["accuracy"] == pytest.approx(float((predicted == labels)[counted].float().mean()))
    assert figures["mean_iou"] == pytest.approx(naive_iou(predicted, labels, 3, counted))
    assert figures["loss"] == pytest.approx(float(F.cross_entropy(LOGITS, labels, ignore_index=ignored)), rel=1e-5)


FORMS = {
    "a channel": lambda mask: mask,
    "no channel": lambda mask: mask.squeeze(1),
    "integers": lambda mask: mask.long(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channel", [True, False])
def test_a_channel_is_the_logit_of_a_binary_mask(form: str, channel: bool) -> None:
    logits, mask = torch.randn(5, 1, 4, 4, generator=seeded(3)), (torch.rand(5, 1, 4, 4, generator=seeded(4)) > 0.5).float()
    figures = Segmentation().evaluate(outputs, adopt_data((logits if channel else logits.squeeze(1), FORMS[form](mask)), 2))
    assert figures["accuracy"] == pytest.approx(float(((logits > 0) == mask.bool()).float().mean()))
    assert figures["loss"] == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, mask)), rel=1e-5)


def test_one_mask_for_each_class_is_the_same_as_class_numbers() -> None:
    masks = F.one_hot(LABELS, 3).movedim(-1, 1).float()
    one, two = (Segmentation().evaluate(outputs, adopt_data((LOGITS, labels), 4)) for labels in (masks, LABELS))
    assert one == pytest.approx(two)


def test_scores_of_a_lower_resolution_are_interpolated_as_transformers_does() -> None:
    labels = torch.randint(0, 3, (6, 16, 20), generator=seeded(5))
    expected = F.cross_entropy(F.interpolate(LOGITS, size=(16, 20), mode="bilinear", align_corners=False), labels)
    assert Segmentation().evaluate(outputs, adopt_data((LOGITS, labels), 6))["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_label_beyond_the_classes_is_refused_with_the_way_to_ignore_it() -> None:
    with pytest.raises(KdError, match="a label is 255, and the model has 3 classes") as caught:
        Segmentation().losses(LOGITS, Batch((LOGITS,), labels=LABELS.masked_fill(LABELS == 0, 255)))
    assert "--task {kdkit.tasks.Segmentation(ignore_index=255)}" in str(caught.value)

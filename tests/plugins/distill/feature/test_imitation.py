"""Imitation masks of detectors: the paper's formula, and distill hints with it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.session.session import Session
from kdkit_distill.feature.imitation import RATIOS, anchors, box_mask, imitation_mask, masked_hint_distance
from tests.fixtures.outputs import seeded


def overlap(one: list[float], two: list[float]) -> float:
    common = max(0.0, min(one[2], two[2]) - max(one[0], two[0])) * max(0.0, min(one[3], two[3]) - max(one[1], two[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, two)]
    return common / (sum(areas) - common)


def of_paper(boxes: list[list[float]], height: int, width: int, lengths: list[float], share: float) -> list[list[bool]]:
    """The mask as section 3.2 of the paper states it: for each box M = max(m), F = ψ · M, and the places where m > F, joined by OR."""
    mask = [[False] * width for _ in range(height)]
    for box in boxes:
        m = {}
        for row, column, length, ratio in product(range(height), range(width), lengths, RATIOS):
            x, y, w, h = column + 0.5, row + 0.5, length * ratio**-0.5, length * ratio**0.5
            anchor = [(x - w / 2) / width, (y - h / 2) / height, (x + w / 2) / width, (y + h / 2) / height]
            m[row, column, length, ratio] = overlap(anchor, box)
        limit = share * max(m.values())
        for (row, column, _, _), value in m.items():
            mask[row][column] = mask[row][column] or value > limit
    return mask


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_mask_is_the_papers(share: float) -> None:
    boxes = [[0.1, 0.2, 0.45, 0.5], [0.6, 0.55, 0.9, 0.95]]
    found = imitation_mask(torch.tensor(boxes, dtype=torch.float64), anchors((6, 5), [1.0, 2.0]), share)
    assert found.tolist() == of_paper(boxes, 6, 5, [1.0, 2.0], share)


def test_the_loss_is_the_papers_but_for_half_the_channels() -> None:
    student, teacher = (torch.randn(1, 3, 4, 5, generator=seeded(number), dtype=torch.float64) for number in range(2))
    mask = imitation_mask(torch.tensor([[0.1, 0.2, 0.5, 0.6]], dtype=torch.float64), anchors((4, 5), [1.0, 2.0]))
    places = [(row, column) for row, column in product(range(4), range(5)) if mask[row, column]]
    assert 0 < len(places) < 20
    paper = sum((float(student[0, c, row, column]) - float(teacher[0, c, row, column])) ** 2 for row, column in places for c in range(3)) / (2 * len(places))
    assert float(masked_hint_distance(student, teacher, mask[None])) * 3 / 2 == pytest.approx(paper)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_each_box_has_a_place_in_both_masks_and_a_larger_share_selects_fewer(height: int, width: int, seed: int) -> None:
    corner, size = torch.rand(2, 1, 2, generator=seeded(seed)).unbind()
    box = torch.cat([corner * 0.9, corner * 0.9 + 0.02 + size * 0.08], 1)
    around = anchors((height, width), [1.0, 4.0])
    assert box_mask(box, (height, width)).any()
    loose, strict = imitation_mask(box, around, 0.2), imitation_mask(box, around, 0.9)
    assert strict.any()
    assert bool((loose | ~strict).all())


def test_no_boxes_give_no_places() -> None:
    none = torch.zeros(0, 4)
    assert not box_mask(none, (2, 3)).any()
    assert not imitation_mask(none, anchors((2, 3), [1.0])).any()


class Detector(nn.Module):
    """A dense head over a map of 4 x 4 places."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(width, 3, 1), nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.body(x)
        return {"logits": self.classes(found).flatten(2).mT, "pred_boxes": self.boxes(found).flatten(2).mT.sigmoid()}


def session(boxes: Tensor) -> Session:
    pictures = torch.randn(4, 3, 8, 8, generator=seeded(0))
    data = [(pictures, [{"boxes": boxes, "labels": torch.tensor([1])}] * 4)]
    torch.manual_seed(0)
    own = Session(Detector(4), train=data, eval=data, measures=("quality",))
    own.set(teacher=Detector(6).eval())
    return own


def test_boxes_are_taken_from_labels() -> None:
    with pytest.raises(KdError, match="leave out --no-labels"):
        session(torch.tensor([[0.2, 0.2, 0.4, 0.4]])).run("distill hints --no-labels --places within --steps 1")


@pytest.mark.slow
@pytest.mark.parametrize("places", ["within", "near"])
@pytest.mark.parametrize("pixels", [False, True])
def test_hints_of_a_detector_are_those_of_its_masked_places(places: str, pixels: bool) -> None:
    share = torch.tensor([[0.25, 0.25, 0.3, 0.4]])
    own = session(share * 8 if pixels else share)
    made = own.run(f"distill hints --layers body.3=body.3 --steps 2 --batch-size 4 --places {places} --anchor-lengths 1 2")
    assert any("hint" in note for note in made.notes), made.notes


def test_places_need_a_detector_and_maps() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    own = Session(net, train=(torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])), measures=("quality",))
    own.set(teacher=net)
    with pytest.raises(KdError, match="at the true boxes of a detector"):
        own.run("distill hints --places near --steps 1")

"""Mean average precision of detections."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.session.session import Session

TARGETS = ({"boxes": torch.tensor([[0.0, 0.0, 0.5, 0.5]]), "labels": torch.tensor([1])}, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)})
DATA = [((torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)), TARGETS)]


class Right(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.tensor(0.9))

    def forward(self, pictures: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": item["boxes"], "labels": item["labels"].long(), "scores": self.score.expand(len(item["boxes"]))} for item in TARGETS[: len(pictures)]]


def test_detections_and_true_boxes_reach_torchmetrics_by_item(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []

    class Metric:
        def __init__(self, box_format: str):
            assert box_format == "xyxy"

        def update(self, found: list, true: list) -> None:
            received.extend(zip(found, true, strict=True))

        def compute(self) -> dict[str, Tensor]:
            return {"map": torch.tensor(0.75), "map_50": torch.tensor(-1.0)}

    package, module = ModuleType("torchmetrics"), ModuleType("torchmetrics.detection")
    module.MeanAveragePrecision = Metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmetrics", package)
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", module)
    session = Session(Right(), eval=DATA, measures=("map",))
    assert (session.head["map"], "map_50" in session.head.report) == (0.75, False)
    (found, true), (nothing, none) = received
    assert torch.equal(found["boxes"], true["boxes"])
    assert (found["labels"].tolist(), true["labels"].tolist(), len(nothing["boxes"]), len(none["boxes"])) == ([1], [1], 0, 0)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    session = Session(Right(), eval=DATA, measures=("quality", "map"))
    assert session.head["f1"] == 1
    assert "pip install 'kdkit[detection]'" in str(session.status())


def test_right_detections_have_a_precision_of_one() -> None:
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    head = Session(Right(), eval=DATA, measures=("map",)).head
    assert (head["map"], head["map_50"]) == (pytest.approx(1), pytest.approx(1))

"""Detectors of torchvision and of transformers, made from small configurations: trained, distilled, pruned; and refused where a graph has no form for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.backends.tracing import exportable
from kdkit.errors import KdError
from kdkit.session.session import Session
from kdkit.tasks import Detection
from tests.fixtures.detectors import SIDE, detr, pictures, yolos

STEPS = "--steps 2 --batch-size 2 --learning-rate 1e-4"


def targets(scale: float) -> list[dict[str, Tensor]]:
    """No, one and two boxes, as corners, each with a mask that fills it."""
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0.4, 0.4, 0.9, 0.8]]) * scale
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, (boxes / scale * SIDE).int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return [{"boxes": boxes[:number], "labels": torch.arange(1, number + 1), "masks": masks[:number]} for number in (1, 2, 0, 1)]


class ListDetector(nn.Module):
    """A detector in the form of torchvision's: losses from pictures and targets in training, otherwise detections of each picture."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 8, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(width, 3, 1), nn.Conv2d(width, 4, 1)

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        found = self.body(images)
        logits, boxes = self.classes(found).flatten(2).mT, self.boxes(found).flatten(2).mT.sigmoid() * SIDE
        if self.training:
            assert targets is not None
            away = [(box.mean(0) - target["boxes"].mean(0)).abs().mean() if len(target["boxes"]) else box.sum() * 0 for box, target in zip(boxes, targets, strict=True)]
            return {"loss_classes": logits.square().mean(), "loss_boxes": torch.stack(away).mean()}
        made = []
        for scores, box in zip(logits.softmax(-1), boxes, strict=True):
            best, label = scores[:, 1:].max(-1)
            kept = best > 0.34
            made.append({"boxes": box[kept], "scores": best[kept], "labels": label[kept] + 1})
        return made


class MaskDetector(ListDetector):
    """A detector that learns masks too, and returns one for each detection."""

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        found = super().forward(images, targets)
        if self.training:
            assert targets is not None
            assert all(target["masks"].shape == (len(target["boxes"]), SIDE, SIDE) for target in targets)
            return found | {"loss_mask": sum(target["masks"].float().sum() for target in targets) * self.classes.bias.square().mean() / SIDE**2}
        return [item | {"masks": torch.zeros(len(item["boxes"]), 1, SIDE, SIDE)} for item in found]


def ssd() -> nn.Module:
    detection = pytest.importorskip("torchvision").models.detection
    return detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3, topk_candidates=20)


def retina() -> nn.Module:
    return _torchvision("RetinaNet", anchor_generator=True)


def faster() -> nn.Module:
    return _torchvision("FasterRCNN")


def mask() -> nn.Module:
    regions = pytest.importorskip("torchvision").ops.MultiScaleRoIAlign(featmap_names=["0"], output_size=6, sampling_ratio=1)
    return _torchvision("MaskRCNN", mask_roi_pool=regions)


def _torchvision(kind: str, anchor_generator: bool = False, **parts: nn.Module) -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU())
    body.out_channels = 16
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(sizes=((16, 32),), aspect_ratios=((0.5, 1.0, 2.0),))
    regions = torchvision.ops.MultiScaleRoIAlign(featmap_names=["0"], output_size=3, sampling_ratio=1)
    few: dict[str, Any] = {f"rpn_{when}_nms_top_n_{mode}": 20 for when in ("pre", "post") for mode in ("train", "test")}
    more = {"topk_candidates": 20} if anchor_generator else few | {"box_roi_pool": regions}
    return getattr(torchvision.models.detection, kind)(
        body, num_classes=3, min_size=SIDE, max_size=SIDE, **{"anchor_generator" if anchor_generator else "rpn_anchor_generator": generator}, **more, **parts
    )


LISTED: dict[str, Callable[[], nn.Module]] = {
    "stand-in": ListDetector,
    "SSDLite": ssd,
    "RetinaNet": retina,
    "Faster R-CNN": faster,
    "Mask R-CNN": mask,
    "stand-in with masks": MaskDetector,
}
SETS = {"DETR": detr, "YOLOS": yolos}


def session(make: Callable[[], nn.Module], **settings: Any) -> Session:
    torch.manual_seed(0)
    model = make().eval()
    listed = make in LISTED.values()
    if listed:
        data: Any = [(pictures(), targets(SIDE))]
    else:
        true = targets(1.0)
        boxes = [torch.cat([(each["boxes"][:, :2] + each["boxes"][:, 2:]) / 2, each["boxes"][:, 2:] - each["boxes"][:, :2]], 1) for each in true]
        data = [{"pixel_values": torch.stack(pictures()), "labels": [{"class_labels": each["labels"], "boxes": box} for each, box in zip(true, boxes, strict=True)]}]
    own = Session(model, train=data, eval=data, measures=("quality", "agreement"), **settings)
    torch.manual_seed(1)
    own.set(teacher=make().eval())
    return own


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTED)
def test_a_model_that_returns_its_losses_in_training_learns_from_labels_and_layers(name: str) -> None:
    own = session(LISTED[name])
    assert isinstance(own.task, Detection)
    assert own.task.loss_from_model
    for line in (f"tune finetune {STEPS}", f"distill hints --places near --anchor-lengths 1 2 {STEPS}", f"distill attention {STEPS}"):
        made = own.run(line)
        assert "f1" in made.report, (line, made.report.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTED)
def test_what_needs_fixed_places_is_refused_with_what_works(name: str) -> None:
    own = session(LISTED[name])
    with pytest.raises(KdError, match="distill hints and distill attention compare layers"):
        own.run(f"distill soft {STEPS}")
    with pytest.raises(KdError, match="returns a list with an entry for each item"):
        own.run("convert onnx")
    with pytest.raises(KdError, match="--importance taylor needs a loss of the outputs"):
        own.run("prune channels --importance taylor")
    assert len(own.versions) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_sets_of_detections_are_trained_and_distilled(name: str) -> None:
    own = session(SETS[name])
    assert isinstance(own.task, Detection)
    assert (own.task.form, own.task.sets) == ("cxcywh", True)
    for line in (f"tune finetune {STEPS}", f"distill soft {STEPS}"):
        made = own.run(line)
        assert "f1" in made.report, (line, made.report.notes)
    assert own.head.number == 2


def test_each_part_of_a_model_gets_its_own_attention_back_after_an_export() -> None:
    model: Any = detr()
    before = model.config._attn_implementation, model.config.backbone_config._attn_implementation
    with exportable(model):
        assert model.config._attn_implementation == "eager"
    assert (model.config._attn_implementation, model.config.backbone_config._attn_implementation) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTED)
def test_channels_of_a_detector_that_returns_lists_are_pruned(name: str) -> None:
    own = session(LISTED[name])
    before = sum(weight.numel() for weight in own.original.parameters())
    made = own.run("prune channels --ratio 0.3")
    assert sum(weight.numel() for weight in made.model.parameters()) < before
    assert "f1" in own.run(f"tune finetune {STEPS}").report


@pytest.mark.slow
def test_a_detection_layer_keeps_its_width_where_there_are_no_detections() -> None:
    own = session(ListDetector)
    with torch.no_grad():
        own.original.classes.bias.copy_(torch.tensor([99.0, 0.0, 0.0]))
    assert not any(len(each["boxes"]) for each in own.original(torch.stack(pictures())))
    made = Session(own.original, example=torch.stack(pictures()), measures=()).run("prune channels --ratio 0.3")
    assert (made.model.classes.out_channels, made.model.boxes.out_channels, made.model.body[0].out_channels) == (3, 4, 6)


def test_an_empty_box_is_named() -> None:
    data = [(pictures()[:1], [{"boxes": torch.tensor([[3.0, 4.0, 3.0, 9.0]]), "labels": torch.tensor([1])}])]
    with pytest.raises(KdError, match=r"a true box is empty: \(3, 4, 3, 9\)"):
        Session(ListDetector(), train=data, measures=()).run(f"tune finetune {STEPS}")

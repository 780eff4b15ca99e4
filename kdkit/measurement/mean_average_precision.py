"""Mean average precision of detections, as COCO defines it; computed by torchmetrics with pycocotools."""

from __future__ import annotations

import torch

from kdkit.errors import KdError
from kdkit.measurement.measure import Subject
from kdkit.measurement.report import Figure
from kdkit.tasks import Detection


def measure_map(subject: Subject) -> list[Figure]:
    """The mean of the average precision over classes and over overlaps from 0.5 to 0.95, and that at 0.5; none for other tasks.

    Raises:
        KdError: torchmetrics or pycocotools is not installed.
    """
    task, data = subject.task, subject.data
    if not isinstance(task, Detection) or data is None or not data.labelled:
        return []
    try:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(box_format="xyxy")
    except ImportError as error:
        raise KdError("it needs torchmetrics and pycocotools, which are not installed", "pip install 'kdkit[detection]'") from error
    items = 0
    with subject.running() as call, torch.no_grad():
        for batch in data.batches():
            subject.check_cancelled()
            found = [{"boxes": boxes.cpu(), "scores": scores.cpu(), "labels": classes.cpu()} for boxes, scores, classes in task.detections(call(batch))]
            metric.update(found, [{"boxes": boxes, "labels": classes} for boxes, classes in task.true_boxes(batch)])
            items += batch.size
    values = metric.compute()
    # torchmetrics gives -1 where there is no true box
    return [Figure(name, float(values[name]), n=items, headline=name == "map") for name in ("map", "map_50") if values[name] >= 0]

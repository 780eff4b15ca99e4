"""The distance between the detections of two dense heads: place by place, or as sets.

Where each place belongs to a region of the picture, both nets' outputs are compared place by place (Chen et al., "Learning
Efficient Object Detection Models with Knowledge Distillation", 2017). The queries of DETR and its kind have no order, and those
of two nets find different objects; the teacher's detections are assigned to the student's at the least total distance (Chang et
al., "DETRDistill: A Universal Knowledge Distillation Framework for DETR-families", ICCV 2023, arXiv:2211.10156), which is then
the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdkit.tasks import Detection, assign
from kdkit_distill.precision import wide_pair
from kdkit_distill.response.divergences import soft_labels


def distance_of_places(student: Tensor, teacher: Tensor, temperature: float, task: Detection) -> Tensor:
    """The distance between two dense heads, place by place: (batch, places, classes + 1 + 4) each -> (batch,).

    At each place T² · KL of the classes, the background last, plus the L1 distance of the boxes weighted by the teacher's
    probability of an object there, since boxes of the background mean nothing; the mean over the places.
    """
    student, teacher = wide_pair(student, teacher)
    apart = (student[..., -4:] - teacher[..., -4:]).abs().sum(-1)
    return (soft_labels(student[..., :-4], teacher[..., :-4], temperature) + objects(teacher) * apart).mean(-1)


def distance_of_sets(student: Tensor, teacher: Tensor, temperature: float, task: Detection) -> Tensor:
    """The distance between two sets of detections: (batch, places, classes + 1 + 4) each -> (batch,).

    Each of the teacher's places is assigned to one of the student's. Their distance is T² · KL of the classes, the background
    last, plus DETR's distance of boxes, 5 · L1 + 2 · (1 - generalized IoU), weighted by the teacher's probability of an object; the
    assignment is the one with the least mean, which is returned. If the teacher has more places than the student, those most surely
    objects count; if fewer, the rest of the student's places learn that they are background.

    >>> one = torch.cat([torch.randn(1, 5, 3), torch.rand(1, 5, 4)], -1)
    >>> distance_of_sets(one, one[:, [3, 1, 4, 0, 2]], 1.0, Detection(form="cxcywh")).abs() < 1e-6
    tensor([True])
    """
    student, teacher = wide_pair(student, teacher)
    return torch.stack([_of_item(one, two, temperature, task) for one, two in zip(student, teacher, strict=True)])


def objects(detections: Tensor) -> Tensor:
    """The probability that there is an object at each place: (..., classes + 1 + 4) -> (...)."""
    return 1 - detections[..., :-4].softmax(-1)[..., -1]


def _of_item(student: Tensor, teacher: Tensor, temperature: float, task: Detection) -> Tensor:
    places = len(student)
    teacher = teacher[objects(teacher).topk(min(places, len(teacher))).indices]
    wanted, found = (teacher[:, :-4] / temperature).softmax(-1), (student[:, :-4] / temperature).log_softmax(-1)
    classes = torch.special.xlogy(wanted, wanted).sum(-1, keepdim=True) - wanted @ found.T
    background = -found[:, -1].expand(places - len(teacher), -1)
    apart = torch.cat([temperature**2 * classes + objects(teacher)[:, None] * task.distances(teacher[:, -4:], student[:, -4:]), temperature**2 * background])
    return apart[assign(apart)].mean()

"""The base classes of techniques that compare logits: the same classes for both models, and a temperature with a schedule."""

from __future__ import annotations

from typing import ClassVar

from kdkit import Task, param
from kdkit.tasks import Classification
from kdkit_distill.schedules import Shape, between
from kdkit_distill.technique import DistillStage

_WITHOUT_CLASSES = {
    "labels": "it compares classes as one distribution, and here each label is decided on its own; distill soft compares labels one by one",
    "numbers": "it compares classes as one distribution, and here the model returns numbers; distill soft compares numbers by their squared distance",
    "vectors": "it compares classes as one distribution, and here the model returns vectors; distill soft compares vectors by their cosine",
}


def not_of_classes(task: Task) -> str:
    """Why a technique that compares distributions over classes can't be used for a task; empty if it can.

    >>> from kdkit.tasks import MultiLabel
    >>> not_of_classes(Classification()), not_of_classes(MultiLabel()).partition(";")[0]
    ('', 'it compares classes as one distribution, and here each label is decided on its own')
    """
    return "" if isinstance(task, Classification) else _WITHOUT_CLASSES.get(task.predicts, "it compares classes, and works for classification and language models")


class Tempered(DistillStage):
    """A technique with a temperature, which may change over the training."""

    temperature: float = param(4.0, "softens both distributions; 1: no softening", gt=0, search=(1, 8), main=True)
    temperature_schedule: Shape = param("constant", "how the temperature changes to --temperature-end over the training", advanced=True)
    temperature_end: float = param(1.0, "the temperature at the end of a linear or cosine schedule", gt=0, advanced=True)

    def temperature_at(self, progress: float) -> float:
        """The temperature at `progress` of the training."""
        return between(self.temperature_schedule, self.temperature, self.temperature_end, progress)


class ResponseStage(Tempered):
    """A technique that compares the logits of student and teacher."""

    compares_logits: ClassVar[bool] = True

    def incompatible_task(self, task: Task) -> str:
        return not_of_classes(task)

"""What techniques over logits share: the same classes on both sides, and a temperature that may follow a schedule."""

from __future__ import annotations

from typing import ClassVar

from kdkit.contract import param
from kdkit.tasks import Classification, Task
from kdkit_distill.schedules import Shape, between
from kdkit_distill.stage import DistillStage


class Tempered(DistillStage):
    """A technique that softens answers, by a temperature that may change over the training."""

    temperature: float = param(4.0, "softens both distributions; 1 leaves them as they are", gt=0, search=(1, 8))
    temperature_schedule: Shape = param("constant", "how the temperature goes to --temperature-end over the training", advanced=True)
    temperature_end: float = param(1.0, "the temperature at the end of a linear or cosine schedule", gt=0, advanced=True)

    def temperature_at(self, progress: float) -> float:
        """The temperature at `progress` of the training."""
        return between(self.temperature_schedule, self.temperature, self.temperature_end, progress)


class ResponseStage(Tempered):
    """A technique that compares the logits of student and teacher."""

    compares_logits: ClassVar[bool] = True

    def unsuited(self, task: Task) -> str:
        return "" if isinstance(task, Classification) else "it compares classes, and works for classification and language models"

"""Teacher assistants: where the teacher is far larger than the student, nets of sizes between pass its knowledge on.

Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020
(arXiv:1902.03393).

Each assistant learns soft labels from the one before, the first from the teacher, the student from the last. Pitfalls: each is
a whole training; an assistant that is worse than the student could be by itself does harm, so look at the figures in the notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from kdkit.contract import param
from kdkit_distill.evaluation import figure, scored_data
from kdkit_distill.scheme.succession import Succession
from kdkit_distill.students.spec import is_name, read

if TYPE_CHECKING:
    from kdkit.context import Context


class Assistant(Succession):
    """Teach the student through assistants of sizes between the teacher's and its own (TAKD).

    Loss of each: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), where z_t are the logits of
    the teacher for the first assistant, of the one before for each that follows, and of the last for the student.
    """

    id: ClassVar[str] = "distill.assistant"
    sample: ClassVar[str] = "%kd distill assistant --student narrow=0.4 --through narrow=0.7 --control train"

    through: tuple[str, ...] = param(..., "assistants, the largest first, each said as a --student: narrow=0.7, layers=0,2,4, a light net, a model", refers="model")

    @property
    def specs(self) -> tuple[str, ...]:
        return (*self.through, *super().specs)

    @property
    def fits(self) -> int:
        return 1 + len(self.through)

    def references(self) -> Iterator[tuple[str, str, str]]:
        for parameter, kind, name in super().references():
            if parameter != "through" or is_name(name):
                yield parameter, kind, name

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not self.through:
            yield "--through names no assistant; without one it is distill soft"

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        yield from super().check(model, context)
        for spec in self.through:
            read(spec, context)

    def teach(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the assistants one after another, then the student."""
        data, task = scored_data(context), context.task
        here = context if self.student is None else replace(context, original=model)
        made, told = model, []
        for spec, made in zip((*self.through, None), self.handed_down(self._learners(model, context), here), strict=True):
            name = "the student" if spec is None else f"assistant {spec}"
            told += [] if data is None else [f"{name} {figure([made], data, context):.4g}"]
        context.note(f"{task.metric}: {', '.join(told)}" if told else "the assistants were not measured: the session has no labelled eval data")
        return made

    def _learners(self, model: nn.Module, context: Context) -> Iterator[tuple[str, nn.Module]]:
        for number, spec in enumerate(self.through, 1):
            yield f"assistant {spec}, {number} of {self.fits}", read(spec, context).make(model, self.teacher, context)
        yield f"the student, {self.fits} of {self.fits}", self.learner(model, context)

"""Teacher assistants: where the teacher is far larger than the student, nets of sizes between pass its knowledge on.

Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020
(arXiv:1902.03393).

Each assistant learns soft labels from the one before, the first from the teacher, the student from the last. Pitfalls: each is
a whole training; an assistant that is worse than the student could be by itself does harm, so look at the figures in the notes.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from kdkit.contract import param
from kdkit.training import Term
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.rounds import Round, figure, scored_data
from kdkit_distill.signals import Exchange
from kdkit_distill.students.spec import is_name, read

if TYPE_CHECKING:
    from kdkit.context import Context

PREVIOUS = "the assistant before"
"""Under which name the next one finds its teacher; no name that an object of the session can have."""


class Assistant(ResponseStage):
    """Teach the student through assistants of sizes between the teacher's and its own.

    Loss of each: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), where z_t are the logits of
    the teacher for the first assistant, of the one before for each that follows, and of the last for the student.
    """

    id: ClassVar[str] = "distill.assistant"

    through: tuple[str, ...] = param(..., "assistants, the largest first, each said as a --student: narrow=0.7, layers=0,2,4, a light net, a model", refers="model")

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

    def terms(self, seen: Exchange) -> Iterable[Term]:
        yield Term("soft", soft_labels(seen.student.logits, seen.teacher.logits, self.temperature_at(seen.step.progress)))

    def teach(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the assistants one after another, then the student."""
        given = context
        context = context if self.student is None else replace(context, original=model)
        teacher: nn.Module | None = None
        told: list[str] = []
        data, task = scored_data(context), context.task
        for number, spec in enumerate((*self.through, None), 1):
            name = "the student" if spec is None else f"assistant {spec}"
            learner = self.learner(model, given) if spec is None else read(spec, given).make(model, self.teacher, given)
            changes: dict[str, Any] = {"student": None, **({"teacher": PREVIOUS} if teacher is not None else {})}
            objects = context.objects if teacher is None else ChainMap({PREVIOUS: teacher}, context.objects)  # type: ignore[arg-type]
            apart = Round(number, self.fits, f"{name}, {number} of {self.fits}").of(context, objects=objects)
            teacher = apart.fit(learner, [self.model_copy(update=changes)])
            context.notes.extend(f"{name}: {note}" for note in apart.notes)
            context.exhibits.extend(apart.exhibits)
            told += [] if data is None else [f"{name} {figure([teacher], task, data):.4g}"]
        context.note(f"{task.metric}: {', '.join(told)}" if told else "the assistants were not measured: the session has no labelled eval data")
        assert teacher is not None
        return teacher

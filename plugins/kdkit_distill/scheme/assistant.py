"""Teacher assistants: if the teacher is far larger than the student, nets of intermediate sizes learn first and then teach.

Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020
(arXiv:1902.03393).

Each assistant learns soft labels from the one before, the first from the teacher, the student from the last. Pitfalls: each
assistant costs a full training; an assistant that is worse than a student trained on labels does harm, so check the metrics in
the notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from kdkit import param
from kdkit_distill.evaluation import figure, scored_data
from kdkit_distill.scheme.succession import Succession
from kdkit_distill.students.spec import is_name, read

if TYPE_CHECKING:
    from kdkit import Context


class Assistant(Succession):
    """Teach the student through assistants of intermediate sizes (TAKD).

    Loss of each: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), where z_t are the logits of
    the teacher for the first assistant, of the previous assistant for each further one, and of the last for the student.
    """

    id: ClassVar[str] = "distill.assistant"
    known_as: ClassVar[tuple[str, ...]] = ("TAKD", "teacher assistant")
    sample: ClassVar[str] = "%kd distill assistant --student narrow=0.4 --through narrow=0.7"

    through: tuple[str, ...] = param(..., "assistants, the largest first, each written as a --student: narrow=0.7, layers=0,2,4, a light net, a model", names="model")

    @property
    def specs(self) -> tuple[str, ...]:
        return (*self.through, *super().specs)

    @property
    def run_count(self) -> int:
        return 1 + len(self.through)

    def named_objects(self) -> Iterator[tuple[str, str, str]]:
        for parameter, kind, name in super().named_objects():
            if parameter != "through" or is_name(name):
                yield parameter, kind, name

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not self.through:
            yield "--through names no assistant; without assistants, use distill soft"

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        yield from super().check(model, context)
        for spec in self.through:
            read(spec, context)

    def train(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the assistants one after another, then the student."""
        data, task = scored_data(context), context.task
        here = context if self.student is None else replace(context, original=model)
        made, texts = model, []
        for spec, made in zip((*self.through, None), self.train_in_turn(self._learners(model, context), here), strict=True):
            name = "the student" if spec is None else f"assistant {spec}"
            texts += [] if data is None else [f"{name} {figure([made], data, context):.4g}"]
        context.note(f"{task.metric}: {', '.join(texts)}" if texts else "the assistants were not measured: the session has no labelled eval data")
        return made

    def _learners(self, model: nn.Module, context: Context) -> Iterator[tuple[str, nn.Module]]:
        for number, spec in enumerate(self.through, 1):
            yield f"assistant {spec}, {number} of {self.run_count}", read(spec, context).make(model, self.teacher, context)
        yield f"the student, {self.run_count} of {self.run_count}", self.make_student(model, context) or model

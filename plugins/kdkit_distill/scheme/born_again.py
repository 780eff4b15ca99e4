"""Born again: a net teaches a newly initialized copy of itself, which teaches the next one.

Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born-Again Neural Networks", ICML 2018 (arXiv:1805.04770).

Generation k begins with fresh weights and a fresh optimizer, and learns from generation k - 1; the first one learns from the
teacher. The mean of all generations' probabilities is often better than any of them. Pitfalls: weights that only the net's own
constructor can initialize can't be drawn again, and each generation costs a full training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import nn

from kdkit import param
from kdkit_distill.evaluation import best, figure, scored_data
from kdkit_distill.scheme.succession import Succession
from kdkit_distill.students.fresh import reinitialized

if TYPE_CHECKING:
    from kdkit import Context


class BornAgain(Succession):
    """Train generations of one net, each from fresh weights and taught by the previous one (BAN).

    Loss of each generation: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), where z_t are the
    logits of the previous generation.
    """

    id: ClassVar[str] = "distill.born-again"
    known_as: ClassVar[tuple[str, ...]] = ("BAN", "born-again networks")

    generations: int = param(3, "trainings, each from fresh weights", ge=1, search=(1, 5), main=True)
    keep_generation: Literal["last", "best"] = param("last", "which generation is kept; best needs validation data")

    @property
    def run_count(self) -> int:
        return self.generations

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.keep_generation == "best" and self.validation is None:
            yield "--keep-generation best needs validation data: --validation {held_out_loader}"

    def train(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the generations one after another.

        Raises:
            KdError: the net has no weights that can be drawn again.
        """
        context = context if self.student is None else replace(context, original=model)
        student = self.make_student(model, context) or model
        # what can't be drawn again is noted once
        seeds = {number: context.seed + 7919 * (number - 1) for number in range(1, self.generations + 1)}
        born = (
            (f"generation {number} of {self.generations}", reinitialized(student, context if number == 1 else replace(context, notes=[]), seed))
            for number, seed in seeds.items()
        )
        made = list(self.train_in_turn(born, context))
        self._tell(made, context)
        return made[self._chosen(made, context)]

    def _chosen(self, made: list[nn.Module], context: Context) -> int:
        if self.keep_generation == "last" or self.validation is None:
            return len(made) - 1
        data, task = context.data(self.validation), context.task
        figures = [figure([each], data, context) for each in made]
        kept = best(figures, task.better)
        context.note(f"kept generation {kept + 1}: {task.metric} {figures[kept]:.4g} on {self.validation}")
        return kept

    def _tell(self, made: list[nn.Module], context: Context) -> None:
        data, task = scored_data(context), context.task
        if data is None:
            context.note("the generations were not measured: the session has no labelled eval data")
            return
        texts = [f"generation {number} {figure([each], data, context):.4g}" for number, each in enumerate(made, 1)]
        together = f", ensemble of them {figure(made, data, context):.4g}" if len(made) > 1 else ""
        context.note(f"{task.metric}: {', '.join(texts)}{together}")

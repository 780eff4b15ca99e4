"""Born again: a net teaches a fresh copy of itself, and that one the next.

Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born-Again Neural Networks", ICML 2018 (arXiv:1805.04770).

Generation k begins with fresh weights and a fresh optimizer, and learns from generation k - 1; the first one learns from the
teacher. The mean of all generations' probabilities is often better than any of them. Pitfalls: weights that only the net's own
constructor knows how to draw can't be drawn anew, and each generation costs a whole training.
"""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import nn

from kdkit.contract import param
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.seeding import seeded
from kdkit.training import Term
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.response.stage import ResponseStage
from kdkit_distill.rounds import Round, figure, scored_data
from kdkit_distill.signals import Exchange

if TYPE_CHECKING:
    from kdkit.context import Context

PREVIOUS = "the generation before"
"""Under which name the next generation finds its teacher; no name that an object of the session can have."""


class BornAgain(ResponseStage):
    """Teach generations of one net, each with fresh weights and the one before as its teacher.

    Loss of each generation: (1 - alpha) · label loss + alpha · T² · KL(softmax(z_t / T) ‖ softmax(z_s / T)), where z_t are the
    logits of the generation before. A --control begins as the first generation does, and trains as long as one of them.
    """

    id: ClassVar[str] = "distill.born-again"

    generations: int = param(3, "trainings, each from fresh weights", ge=1, search=(1, 5))
    keep_generation: Literal["last", "best"] = param("last", "which one is kept; best wants validation data")

    @property
    def fits(self) -> int:
        return self.generations

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.keep_generation == "best" and self.validation is None:
            yield "--keep-generation best wants validation data: --validation {held_out_loader}"

    def beginning(self, model: nn.Module, context: Context) -> nn.Module:
        """The first generation's fresh weights; what could not be drawn anew is noted."""
        return reborn(self.learner(model, context), context, context.seed)

    def terms(self, seen: Exchange) -> Iterable[Term]:
        yield Term("soft", soft_labels(seen.student.logits, seen.teacher.logits, self.temperature_at(seen.step.progress)))

    def teach(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the generations one after another.

        Raises:
            KdError: the net has no weights that can be drawn anew.
        """
        context = context if self.student is None else replace(context, original=model)
        student = self.learner(model, context)
        made: list[nn.Module] = []
        for number in range(1, self.generations + 1):
            born = reborn(student, context if number == 1 else replace(context, notes=[]), context.seed + 7919 * (number - 1))
            stage: dict[str, Any] = {"student": None, **({"teacher": PREVIOUS} if made else {})}
            objects = ChainMap({PREVIOUS: made[-1]}, context.objects) if made else context.objects  # type: ignore[arg-type]
            apart = Round(number, self.generations, f"generation {number} of {self.generations}").of(context, objects=objects)
            made.append(apart.fit(born, [self.model_copy(update=stage)]))
            context.notes.extend(f"generation {number}: {note}" for note in apart.notes)
            context.exhibits.extend(apart.exhibits)
        self._tell(made, context)
        return made[self._chosen(made, context)]

    def _chosen(self, made: list[nn.Module], context: Context) -> int:
        if self.keep_generation == "last" or self.validation is None:
            return len(made) - 1
        data, task = context.data(self.validation), context.task
        figures = [figure([each], task, data) for each in made]
        best = (max if task.better == "higher" else min)(range(len(made)), key=figures.__getitem__)
        context.note(f"kept generation {best + 1}: {task.metric} {figures[best]:.4g} on {self.validation}")
        return best

    def _tell(self, made: list[nn.Module], context: Context) -> None:
        data, task = scored_data(context), context.task
        if data is None:
            context.note("the generations were not measured: the session has no labelled eval data")
            return
        told = [f"generation {number} {figure([each], task, data):.4g}" for number, each in enumerate(made, 1)]
        together = f", ensemble of them {figure(made, task, data):.4g}" if len(made) > 1 else ""
        context.note(f"{task.metric}: {', '.join(told)}{together}")


def reborn(model: nn.Module, context: Context, seed: int) -> nn.Module:
    """A copy with fresh weights: of transformers' own drawing, or by the modules' `reset_parameters`.

    Modules that have weights and no `reset_parameters` keep what they have; they are named in a note.

    Raises:
        KdError: none of its modules can be reset.
    """
    fresh = private_copy(model)
    # not the number itself: a net made under manual_seed(0) would come back as it once began
    with seeded((seed * 1_000_003 + 0x5EED) % 2**32):
        drawn = _from_config(model)
        if drawn is not None:
            fresh.load_state_dict(drawn.state_dict())
            for module in fresh.modules():
                # transformers draws the scales of some about zero, which lets no signal through
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.reset_parameters()
            return fresh
        kept = [name or type(module).__name__ for name, module in fresh.named_modules() if not _reset(module)]
    holders = [name for name, module in fresh.named_modules() if module._parameters]
    if len(kept) >= len(holders):
        raise KdError(
            f"{type(model).__name__} has no module with reset_parameters, so it can't begin anew",
            "write reset_parameters(self) in the modules that hold weights",
            "or give a fresh net of your own as --student, and run distill soft for each generation",
        )
    if kept:
        context.note(f"kept from the generation before, as they have no reset_parameters: {', '.join(kept[:4])}{f' and {len(kept) - 4} more' if len(kept) > 4 else ''}")
    return fresh


def _from_config(model: nn.Module) -> nn.Module | None:
    """A fresh transformers model of the same shapes, where the configuration tells them."""
    config = getattr(model, "config", None)
    if not type(model).__module__.startswith("transformers.") or config is None:
        return None
    drawn: nn.Module = type(model)(copy.deepcopy(config))
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (model, drawn)]
    return drawn if shapes[0] == shapes[1] else None


def _reset(module: nn.Module) -> bool:
    """Draw a module's own weights anew; whether that could be done, or there are none."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is None:
        return not module._parameters
    reset()
    return True

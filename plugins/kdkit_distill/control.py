"""The control: does the teacher help? The same student is trained on labels alone, and both are compared.

A pair shares all but the teacher: the student's first weights, the order of the data, the number of optimizer steps, the
optimizer and its settings. A student with fresh weights is drawn anew for each further seed; one that was given, or made of
the teacher's layers, begins with the same weights each time, and only dropout and the order of the data differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from kdkit.contract import Needs, TrainStage
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.table import Cell, Table, number
from kdkit.training import Step, Term, TrainPart
from kdkit_distill.rounds import Round, figure, scored_data

if TYPE_CHECKING:
    from kdkit.context import Context, Progress
    from kdkit_distill.lesson import DistillStage

# what was found --------------------------------------------------------------------------------------------------------


def gains(control: Sequence[float], distilled: Sequence[float], better: str) -> list[float]:
    """What each pair gained, positive where distilling was better.

    >>> gains([0.5, 0.5], [0.75, 0.25], "higher"), gains([2.0], [1.5], "lower")
    ([0.25, -0.25], [0.5])
    """
    sign = 1.0 if better == "higher" else -1.0
    return [sign * (two - one) for one, two in zip(control, distilled, strict=True)]


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation; nan of a single value.

    >>> spread([1.0, 3.0]), spread([1.0])
    (1.4142135623730951, nan)
    """
    return statistics.stdev(values) if len(values) > 1 else math.nan


def gap_recovered(control: float, distilled: float, teacher: float, better: str) -> float | None:
    """(distilled - control) / (teacher - control); None where the teacher is no better than the control.

    >>> gap_recovered(0.5, 0.75, 1.0, "higher"), gap_recovered(0.9, 0.8, 0.7, "higher"), gap_recovered(4.0, 3.0, 2.0, "lower")
    (0.5, None, 0.5)
    """
    gap = gains([control], [teacher], better)[0]
    return gains([control], [distilled], better)[0] / gap if gap > 0 else None


def verdict(gained: Sequence[float]) -> str:
    """ "helps" or "hurts" where all seeds are on one side and their mean is beyond one standard deviation; else "no effect".

    A single seed gives no verdict, and neither do figures that are not finite.

    >>> verdict([0.02, 0.03, 0.01]), verdict([0.02, -0.01, 0.03]), verdict([-0.02, -0.03])
    ('helps', 'no effect', 'hurts')
    >>> verdict([0.1, 0.001, 0.001]), verdict([0.05]), verdict([0.0, 0.0])
    ('no effect', 'one seed tells little', 'no effect')
    """
    if len(gained) < 2:
        return "one seed tells little"
    if not all(map(math.isfinite, gained)):
        return "no verdict"
    mean = statistics.fmean(gained)
    if abs(mean) <= spread(gained):
        return "no effect"
    return "helps" if all(gain > 0 for gain in gained) else "hurts" if all(gain < 0 for gain in gained) else "no effect"


@dataclass(frozen=True)
class Run:
    """One training of a pair.

    Attributes:
        figure: on the session's eval data, of the weights that were kept.
        epochs: the figure on validation data after each epoch; empty without such data.
    """

    figure: float
    epochs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Pairs of distilled and control, and what follows from them.

    Attributes:
        metric: whose figures these are, and `better`: "higher" or "lower".
        before: the student's figures before training, one a seed.
        control, distilled: one a seed.
        teacher: its figure; None where it could not be had.
        remarks: what else must be known to read the figures.

    >>> found = Comparison("accuracy", "higher", (0.1, 0.1), (Run(0.5), Run(0.5)), (Run(0.75), Run(0.625)), 1.0)
    >>> found.lines()[0]
    'helps: accuracy +0.188 ± 0.0884 over the control in 2 of 2 seeds; 38 % of the gap to the teacher recovered'
    """

    metric: str
    better: str
    before: Sequence[float]
    control: Sequence[Run]
    distilled: Sequence[Run]
    teacher: float | None = None
    remarks: Sequence[str] = field(default=())

    @property
    def gains(self) -> list[float]:
        """Of each pair, positive where distilling was better."""
        return gains(_figures(self.control), _figures(self.distilled), self.better)

    @property
    def recovered(self) -> float | None:
        """The share of the gap between control and teacher, of the seeds' means."""
        one, two = statistics.fmean(_figures(self.control)), statistics.fmean(_figures(self.distilled))
        return None if self.teacher is None else gap_recovered(one, two, self.teacher, self.better)

    @property
    def verdict(self) -> str:
        """See the function of this name."""
        return verdict(self.gains)

    @property
    def table(self) -> Table:
        """A row each for the student before, the control, the distilled student and the teacher; means over the seeds ± sd."""
        chosen = any(run.epochs for run in (*self.control, *self.distilled))
        head = ["", self.metric, *(["validation, last epoch", "validation, best epoch"] if chosen else [])]
        blank: list[Any] = ["", ""] if chosen else []
        rows = [["student before", _cell(self.before), *blank], ["control, labels alone", _cell(_figures(self.control)), *(self._epochs(self.control) if chosen else [])]]
        rows += [["distilled", _cell(_figures(self.distilled)), *(self._epochs(self.distilled) if chosen else [])]]
        rows += [["teacher", Cell(number(self.teacher)), *blank]]
        seeds = len(self.control)
        return Table(head, rows, f"distilled against control, {seeds} seed{'s' if seeds > 1 else ''}")

    def _epochs(self, runs: Sequence[Run]) -> list[Cell]:
        """The last and the best epoch on validation data, of the first seed, whose student is kept."""
        epochs = runs[0].epochs
        if not epochs:
            return [Cell(""), Cell("")]
        best = (max if self.better == "higher" else min)(range(len(epochs)), key=epochs.__getitem__)
        return [Cell(number(epochs[-1])), Cell(number(epochs[best]), f"epoch {best + 1} of {len(epochs)}")]

    def lines(self) -> list[str]:
        """The verdict, and what must be known to read it."""
        gained, count = self.gains, len(self.gains)
        mean = statistics.fmean(gained)
        sign = 1 if self.better == "higher" else -1
        told = f"{self.metric} {sign * mean:+.3g}" + (f" ± {spread(gained):.3g}" if count > 1 else "") + " over the control"
        wins = f" in {sum(gain > 0 for gain in gained)} of {count} seeds" if count > 1 else ""
        share = "" if self.recovered is None else f"; {self.recovered:.0%} of the gap to the teacher recovered".replace("%", " %")
        first = f"{self.verdict}: {told}{wins}{share}"
        return [first if count > 1 else f"{first}; --seeds 3 tells more", *self.remarks]

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *self.lines()])

    def _repr_html_(self) -> str:
        from html import escape

        return self.table._repr_html_() + "".join(f"<p>{escape(line)}</p>" for line in self.lines())


def _figures(runs: Iterable[Run]) -> list[float]:
    return [run.figure for run in runs]


def _cell(values: Sequence[float]) -> Cell:
    return Cell(number(statistics.fmean(values)), f"± {number(spread(values))}" if len(values) > 1 else "")


# how it is found -------------------------------------------------------------------------------------------------------


class Labels(TrainStage):
    """Train on labels alone."""

    id: ClassVar[str] = "distill.control"
    needs: ClassVar[Needs] = Needs(train=True, labels=True)

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return LabelPart()


class LabelPart(TrainPart):
    """The task's own loss."""

    def terms(self, step: Step) -> Iterator[Term]:
        yield Term.of_labels(step)


def comparison_conflicts(stage: DistillStage) -> Iterator[str]:
    """Options of a comparison that don't go together, a line each."""
    from kdkit_distill.lesson import DistillStage

    if stage.seeds > 1 and stage.control is None:
        yield "--seeds repeats a comparison, and there is none: --control train"
    if stage.control is not None and type(stage).apply is not DistillStage.apply:
        yield f"{stage.title} trains in a way of its own, and has no control; leave out --control, and compare it with tune finetune"
    if (stage.checkpoint or stage.resume) and (stage.control is not None or stage.fits > 1):
        yield "--checkpoint and --resume are for one training, and this stage runs several; leave them out"


def comparison_lacks(stage: DistillStage, context: Context) -> Iterator[str]:
    """Labels that a comparison can't do without, a line each."""
    if stage.control is None:
        return
    data = context.objects.get(stage.control)
    if data is not None and not data.labelled and context.task.needs_labels:
        yield f"--control {stage.control}: the control learns from labels, and {stage.control} has none"
    if scored_data(context) is None:
        yield "--control is compared on the session's eval data, with labels: %kd set --eval {held_out_loader}"


def compared(stage: DistillStage, model: nn.Module, context: Context) -> nn.Module:
    """Train pairs of distilled and control; note what was found, and return the distilled student of the first seed.

    Raises:
        KdError: there is nothing to compare on, or a training failed.
    """
    data = scored_data(context)
    if data is None:
        raise KdError("--control is compared on the session's eval data, with labels, and there is none", "%kd set --eval {held_out_loader}")
    plain = stage.model_copy(update={"control": None, "seeds": 1})
    before, control, distilled = [], [], []
    kept: nn.Module | None = None
    for seed in range(stage.seeds):
        pair = _Pair(stage, plain, model, context, seed)
        before.append(figure([pair.start], context.task, data))
        student = pair.distil()
        distilled.append(Run(figure([student], context.task, data), tuple(pair.epochs)))
        kept = student if kept is None else kept
        del student
        control.append(Run(figure([pair.train_control()], context.task, data), tuple(pair.epochs)))
    teacher = _teacher(plain, model, context, data)
    remarks = [*_remarks(stage), *([_step_sizes(plain, model, context)] if stage.optimizer == "sgd" and stage.fits == 1 else [])]
    found = Comparison(context.task.metric, context.task.better, before, control, distilled, teacher, remarks)
    context.exhibit(found)
    context.note(found.lines()[0])
    assert kept is not None
    return kept


class _Pair:
    """A distilled student and its control, from the same weights."""

    def __init__(self, stage: DistillStage, plain: DistillStage, model: nn.Module, context: Context, seed: int):
        self.stage, self.plain, self.model, self.context, self.number = stage, plain, model, context, seed
        self.seed = context.seed + seed
        self.steps = self.fit = 0
        self.span = 1
        self.epochs: list[float] = []
        self.start = private_copy(plain.beginning(private_copy(model), replace(context, seed=self.seed, notes=[], exhibits=[])))

    def distil(self) -> nn.Module:
        context = self._round(1, self.stage.fits, "distilled")
        try:
            return self.plain.teach(private_copy(self.model), context)
        finally:
            if not self.number:
                self.context.notes.extend(context.notes)
                self.context.exhibits.extend(context.exhibits)

    def train_control(self) -> nn.Module:
        """As many optimizer steps as the distilled student had in its last training."""
        context = self._round(1 + self.stage.fits, 1, "control")
        options = {name: getattr(self.plain, name) for name in TrainStage.model_fields} | {"data": self.stage.control}
        if self.stage.control != self.stage.data:
            options["steps"] = self.steps
        made = context.fit(self.start, [Labels(**options)])
        if not self.number:
            self.context.notes.extend(f"control: {note}" for note in context.notes)
        return made

    def _round(self, first: int, span: int, name: str) -> Context:
        count, each = self.stage.seeds, self.stage.fits + 1
        self.epochs, self.fit, self.span = [], 0, span
        told = f"seed {self.number + 1} of {count}, {name}" if count > 1 else name
        return Round(each * self.number + first, each * count, told, span).of(self.context, self._hear, seed=self.seed)

    def _hear(self, progress: Progress) -> None:
        """Take down what the last of its trainings tells."""
        self.steps = round(progress.total / self.span)
        fit = math.ceil(progress.done / progress.total * self.span)
        if fit != self.fit:
            self.fit, self.epochs = fit, []
        epoch = progress.figures.get(f"validation_{self.context.task.metric}")
        if epoch is not None:
            self.epochs.append(epoch)


def _teacher(stage: DistillStage, model: nn.Module, context: Context, data: Any) -> float | None:
    """The teacher's figure; None where only its signals on the training data are at hand."""
    source = stage.source(context if stage.student is None else replace(context, original=model))
    try:
        held = source.model
        return None if held is None else figure([held], context.task, data)
    finally:
        source.close()


def _remarks(stage: DistillStage) -> list[str]:
    remarks = [] if stage.validation else ["figures are of the last epoch; --validation {held_out} tells the best one"]
    if stage.patience is not None:
        remarks.append("--patience may have stopped one of a pair before the other")
    return remarks


def _step_sizes(stage: DistillStage, model: nn.Module, context: Context) -> str:
    """With SGD a larger loss is a larger step, so the gradients of both are told, and what to make of them."""
    apart = replace(context, notes=[], exhibits=[], observe=lambda progress: None)
    once: dict[str, Any] = {"steps": 1, "learning_rate": 1.0, "schedule": "constant", "warmup": 0.0, "clip": None, "weight_decay": 0.0}
    once |= {"validation": None, "patience": None, "keep": "last"}
    start = stage.beginning(private_copy(model), apart)
    taught = apart.fit(private_copy(model), [stage.model_copy(update=once)])
    labels = {name: getattr(stage, name) for name in TrainStage.model_fields} | once | {"data": stage.control or stage.data}
    plain = apart.fit(private_copy(start), [Labels(**labels)])
    ratio = _distance(taught, start) / max(_distance(plain, start), 1e-30)
    return (
        f"with sgd the size of the gradient is part of the step: at the first step the distilled one is {ratio:.2g} times the control's. "
        f"A gain may be the learning rate's; try the control with --learning-rate {stage.learning_rate * ratio:.2g}, or both with --optimizer adamw"
    )


@torch.no_grad()
def _distance(one: nn.Module, other: nn.Module) -> float:
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(one.parameters(), other.parameters(), strict=True)))

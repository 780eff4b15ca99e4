"""Merging label sets: one student learns the classes of several teachers.

Vongkulbhisal, Vinayavekhin, Visentini-Scarzanella, "Unifying Heterogeneous Classifiers with Distillation", 2019
(arXiv:1904.06062).

Pitfalls: a teacher is confident even on items of classes that it does not know, so it matters from which teacher's data an item
comes: on digits 0-4 and 5-9, using this gave 3 to 7 points more accuracy than concatenating all logits. A class shared by
several teachers must mean the same for all of them.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit import Batch, Data, KdError, Needs, Task, Term, param
from kdkit.data import PairedData
from kdkit.tasks import IGNORED, CausalLM, at_least_float32
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.ensemble import mixture
from kdkit_distill.scheme.stage import SeveralTeachers, refuse
from kdkit_distill.signals import Signal, SignalPair
from kdkit_distill.teachers.sources import MultiSource, Source

if TYPE_CHECKING:
    from kdkit import Context

Objective = Literal["gated", "own-set", "concat"]
TOGETHER, WHERE_FROM = "the sources together", "the source it is of"
"""Names under which a training finds the data of --sources and the teacher of each item; objects of a session can't have such names."""


# Objectives ------------------------------------------------------------------------------------------------------------


def side_by_side(logits: Sequence[Tensor], sets: Sequence[Sequence[int]], classes: int, temperature: float) -> Tensor:
    """All teachers' logits in the union of their classes; for a shared class, the mean of e^(z / T).

    Args:
        logits: (..., classes of the teacher), one for each teacher.
        sets: the places of each teacher's classes in the union.
        classes: of the union.

    Returns:
        (..., classes): T · log mean_k e^(z_k / T), which is z if one teacher knows the class.

    >>> side_by_side([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])], [(0, 2), (1,)], 3, 4.0)
    tensor([[1., 3., 2.]])
    """
    spread = torch.stack([_spread(each, places, classes) for each, places in zip(logits, sets, strict=True)])
    known = torch.isfinite(torch.stack([_spread(torch.zeros_like(each[:1]), places, classes) for each, places in zip(logits, sets, strict=True)])).sum(0)
    return temperature * (torch.logsumexp(spread / temperature, 0) - known.to(spread.dtype).log())


def at_home(logits: Sequence[Tensor], sets: Sequence[Sequence[int]], classes: int, temperature: float, owners: Tensor) -> Tensor:
    """The mean of the probabilities of the teachers whose data contains the item; all other classes are ruled out.

    Args:
        logits: (batch, classes of the teacher), one for each teacher.
        owners: (teachers, batch) bool; at least one teacher for each item.

    Returns:
        (batch, classes): logits whose softmax at T is that mean.

    >>> logits = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])]
    >>> at_home(logits, [(0, 2), (1,)], 3, 1.0, torch.tensor([[True], [False]])).softmax(-1).round(decimals=2)
    tensor([[0.2700, 0.0000, 0.7300]])
    """
    spread = torch.stack([_spread(each, places, classes) for each, places in zip(logits, sets, strict=True)])
    shares = (owners / owners.sum(0).clamp_min(1)).view(*owners.shape, *[1] * (spread.ndim - 3))
    return mixture(spread, temperature, shares.expand(spread.shape[:-1]))


def _spread(logits: Tensor, places: Sequence[int], classes: int) -> Tensor:
    """Logits at their places in the union, and -inf everywhere else."""
    logits = at_least_float32(logits)
    found = logits.new_full((*logits.shape[:-1], classes), -torch.inf)
    found[..., list(places)] = logits
    return found


def off_home(student: Tensor, teacher: Tensor) -> Tensor:
    """-log of the student's mass on the classes that the teacher does not rule out.

    Args:
        student: logits (..., classes).
        teacher: logits of the same shape, -inf where a class is ruled out.

    Returns:
        (...), at least 0.

    >>> off_home(torch.zeros(1, 4), torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf]])).exp()
    tensor([2.])
    """
    own = at_least_float32(student).masked_fill(torch.isneginf(teacher), -torch.inf)
    return torch.logsumexp(at_least_float32(student), -1) - torch.logsumexp(own, -1)


def own_set(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`soft_labels` within the classes that the teacher does not rule out, with the student's probabilities rescaled to sum 1.

    >>> own_set(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.0, 2.0, -torch.inf]]))
    tensor([0.])
    """
    return soft_labels(at_least_float32(student).masked_fill(torch.isneginf(teacher), -torch.inf), teacher, temperature)


# Label sets ------------------------------------------------------------------------------------------------------------


def read_sets(text: str) -> tuple[list[tuple[int, ...]], list[str]]:
    """Parse "a b|b c": the places of each teacher's classes in the union, and the names of the union's classes.

    Numbers are places; names get places in order of appearance.

    Raises:
        KdError: a set is empty or contains a class twice, or the numbers have gaps.

    >>> read_sets("cat dog|dog fish")
    ([(0, 1), (1, 2)], ['cat', 'dog', 'fish'])
    >>> read_sets("0 2|1 2")[0]
    [(0, 2), (1, 2)]
    """
    sets = [part.replace(",", " ").split() for part in text.split("|")]
    empty = [number for number, words in enumerate(sets, 1) if not words]
    twice = next((word for words in sets for word in words if words.count(word) > 1), None)
    if empty or twice:
        what = f"set {empty[0]} is empty" if empty else f"a set contains {twice!r} twice"
        raise KdError(f"--classes {text!r}: {what}", 'write one set for each teacher, in the order of its head: --classes "cat dog|apple pear"')
    words = list(dict.fromkeys(word for words in sets for word in words))
    if all(word.isdigit() for word in words):
        places = sorted(map(int, words))
        if places != list(range(len(places))):
            raise KdError(f"--classes {text!r}: numbers are places in the student's head, 0 to {len(places) - 1}, but some are missing", "or use names instead")
        words = list(map(str, places))
    return [tuple(words.index(word) for word in each) for each in sets], words


class Merged(MultiSource):
    """The teachers' predictions over the union of their label sets.

    Args:
        names: of the teachers in the session.
        context: of the run.
        sets: the places of each teacher's classes in the union; None: one set after another.
        temperature: at which probabilities are averaged.
        origin: the number of each training item's teacher, -1 if unknown; None: by the labels.
        by_labels: whether labels determine the teacher of an item.
    """

    def __init__(
        self,
        names: Sequence[str],
        context: Context,
        sets: Sequence[Sequence[int]] | None,
        temperature: float,
        origin: Tensor | None = None,
        by_labels: bool = False,
    ):
        super().__init__(names, context)
        self.sets = None if sets is None else [tuple(each) for each in sets]
        self.temperature, self.origin, self.by_labels = temperature, origin, by_labels

    def settings(self) -> str:
        return f"{self.sets} {self.temperature} {None if self.origin is None else self.origin.tolist()} {self.by_labels}"

    def joined(self, signals: Sequence[Signal], batch: Batch) -> Signal:
        logits = [signal.dense for signal in signals]
        sets = self._fitting([each.shape[-1] for each in logits])
        classes = 1 + max(place for each in sets for place in each)
        plain = side_by_side(logits, sets, classes, self.temperature)
        owners = self._owners(batch, sets, plain.device)
        if owners is None:
            return Signal(plain)
        home, known = at_home(logits, sets, classes, self.temperature, owners), owners.any(0)
        return Signal(torch.where(known.view(-1, *[1] * (plain.ndim - 1)), home, plain))

    def _fitting(self, widths: Sequence[int]) -> Sequence[tuple[int, ...]]:
        if self.sets is None:
            begins = [sum(widths[:index]) for index in range(len(widths))]
            self.sets = [tuple(range(begin, begin + width)) for begin, width in zip(begins, widths, strict=True)]
        for name, width, each in zip(self.names, widths, self.sets, strict=True):
            if width != len(each):
                raise KdError(f"teacher {name} has {width} classes, but --classes names {len(each)} for it", "name its classes in the order of its head")
        return self.sets

    def _owners(self, batch: Batch, sets: Sequence[tuple[int, ...]], device: torch.device) -> Tensor | None:
        """Which teachers' data contains each item, (teachers, batch) bool; None if unknown."""
        teachers = torch.arange(len(sets), device=device)[:, None]
        if self.origin is not None:
            return teachers == self._numbered(batch, self.origin).to(device)
        if not self.by_labels or not isinstance(batch.labels, Tensor) or batch.labels.is_floating_point() or batch.labels.ndim != 1:
            return None
        labels = batch.labels.to(device)
        return torch.stack([torch.isin(labels, torch.tensor(each, device=device)) for each in sets])

    def _numbered(self, batch: Batch, origin: Tensor) -> Tensor:
        if batch.numbers is None:
            raise KdError("--origin needs the number of each item, but the training data has no numbers", "pass a dataset or arrays, not a stream")
        numbers = batch.numbers.cpu()
        if int(numbers.max()) >= len(origin):
            raise KdError(f"--origin has {len(origin)} entries, but the training data has an item {int(numbers.max())}", "pass the number of a teacher for each item")
        return origin[numbers]


class Merge(SeveralTeachers):
    """Unite the label sets of several teachers in one student.

    Loss per item, own = the classes of the teachers whose data contains it: gated: T² · KL(p ‖ softmax(z / T)) with p the own
    teacher's distribution, zero elsewhere; own-set: T² · KL within the own classes + -log of the student's mass on them;
    concat: KL to the concatenation of all logits, for items of unknown origin. Classes that several teachers share
    have one place, and their probabilities are averaged. The student's head has the classes of the union. If each teacher has
    its own data set, name them with --sources; otherwise --origin, or the labels, determine an item's teacher.
    """

    id: ClassVar[str] = "distill.merge"
    known_as: ClassVar[tuple[str, ...]] = ("UHC", "unifying heterogeneous classifiers")
    tried_as: ClassVar[str] = '--teachers {one} {other} --classes "0 1 2 3|0 1 2 3"'

    classes: str = param("", 'each teacher\'s classes, in the order of its head: "cat dog|apple pear" or places "0 1|2 3"; default: one set after another')
    origin: str | None = param(None, "an object of the session: the number of each training item's teacher from 0, or -1; default: by labels", names="object")
    sources: tuple[str, ...] = param(
        (), "data sets, one for each teacher in the same order, used together instead of --data; labels, if any, are numbered as in each teacher's head", names="data"
    )
    objective: Objective = param(
        "gated", "gated: the item's own teacher; own-set: the same, with a separate term for the mass on its classes; concat: all logits concatenated"
    )

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.temperature_schedule != "constant":
            yield "distill merge averages probabilities of one temperature; leave out --temperature-schedule"
        if self.cache and self.objective != "concat" and not self.origin and not self.sources and self.share < 1:
            yield "--cache identifies items by their inputs, but here labels determine each item's teacher; use --origin"
        if self.objective == "concat" and self.origin:
            yield "--objective concat does not use the origin of an item; leave out --origin"
        if self.classes and len(sets := read_sets(self.classes)[0]) != len(self.teachers):
            yield f"--classes names {len(sets)} sets for {len(self.teachers)} teachers; separate them by |"
        if not self.sources:
            return
        if len(self.sources) != len(self.teachers):
            yield f"--sources needs a data set for each teacher, in the same order: {len(self.teachers)} teachers"
        if self.origin or "data" in self.changed():
            yield f"--sources is the training data and determines each item's teacher; leave out {'--origin' if self.origin else '--data'}"
        if self.share < 1 and not self.classes:
            yield "the labels of --sources are numbered as in each teacher's head; add --classes to place them in the union, or --no-labels to ignore them"

    @property
    def shares_loop(self) -> bool:
        """Not with --sources: in a group the first line sets the data."""
        return not self.sources

    def named_objects(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().named_objects() if each[0] != "data" or not self.sources)

    def required_inputs(self) -> Needs:
        return replace(super().required_inputs(), labels=False) if self.sources else super().required_inputs()

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        yield from super().check(model, context)
        bare = [name for name in self.sources if self.share < 1 and not context.data(name).labelled]
        if bare:
            yield f"--sources {bare[0]} has no labels; with --no-labels only the teachers teach"

    def incompatible_task(self, task: Task) -> str:
        return "it unites label sets, and language models have none" if isinstance(task, CausalLM) else super().incompatible_task(task)

    def source(self, context: Context) -> Source:
        refuse(self)
        sets = read_sets(self.classes)[0] if self.classes else None
        origin = None if self.origin is None else _read_origin(context.named(self.origin, "an object"), self.origin, len(self.teachers))
        by_labels = self.objective != "concat" and origin is None and self.share < 1
        return Merged(self.teachers, context, sets, self.temperature, origin, by_labels)

    def train(self, model: nn.Module, context: Context) -> nn.Module:
        if self.sources:
            objects: Any = ChainMap({TOGETHER: self._together(context), WHERE_FROM: self._where_from(context)}, context.objects)
            gated = self.objective != "concat"
            plain = self.model_copy(update={"sources": (), "data": TOGETHER, "origin": WHERE_FROM if gated else None})
            return plain.train(model, replace(context, objects=objects))
        if self.objective != "concat":
            context.note(
                f"each item's teacher follows from {self.origin}"
                if self.origin
                else "each item's teacher follows from its label"
                if self.share < 1
                else "the teacher of each item is unknown, so all logits are concatenated; "
                "--origin {teacher_numbers}, or a data set for each teacher in --sources, determines it; on digits that gave 3 to 7 points more accuracy"
            )
        return super().train(model, context)

    def _together(self, context: Context) -> Data:
        """The sets as one data set, with labels as places in the union."""
        places = [torch.tensor(each) for each in read_sets(self.classes)[0]] if self.classes else []

        def placed(source: int, batch: Batch) -> Batch:
            if self.share == 1:
                return replace(batch, labels=None)
            labels = batch.labels
            if not isinstance(labels, Tensor) or labels.is_floating_point() or int(labels.max()) >= len(places[source]) or int(labels.min()) < min(0, IGNORED):
                raise KdError(f"--sources {self.sources[source]}: its labels are not numbers of the {len(places[source])} classes that --classes names for its teacher")
            return replace(batch, labels=torch.where(labels < 0, IGNORED, places[source][labels.clamp_min(0).long()]))

        return PairedData([context.data(name) for name in self.sources], placed)

    def _where_from(self, context: Context) -> Tensor:
        """The number of each item's teacher, (items,)."""
        return torch.cat([torch.full((context.data(name).items or 0,), number) for number, name in enumerate(self.sources)])

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        student, teacher = seen.student.logits, seen.teacher.dense
        temperature = self.temperature_at(seen.step.progress)
        if self.objective == "own-set":
            yield Term("own set", own_set(student, teacher, temperature))
            yield Term("mass", off_home(student, teacher))
        else:
            yield Term("merge", soft_labels(student, teacher, temperature))


def _read_origin(given: Any, name: str, teachers: int) -> Tensor:
    """The teachers' numbers, (items,) int64."""
    found = torch.as_tensor(given)
    if found.ndim != 1 or found.is_floating_point() or not len(found) or int(found.max()) >= teachers or int(found.min()) < -1:
        raise KdError(f"--origin {name} does not hold the number of a teacher for each item", f"0 to {teachers - 1}, in the order of --teachers; -1 is unknown")
    return found.long()

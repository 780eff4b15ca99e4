"""Merging label sets: teachers that know different classes make one student that knows them all.

Vongkulbhisal, Vinayavekhin, Visentini-Scarzanella, "Unifying Heterogeneous Classifiers with Distillation", 2019
(arXiv:1904.06062).

Pitfalls: a teacher is sure of itself on items that it knows nothing of, so what counts is from which teacher's data an item
comes: on digits 0-4 and 5-9 that is worth 3 to 7 points of accuracy over setting all logits side by side. A class that several
teachers know must mean the same to all of them.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdkit.contract import Needs, param
from kdkit.data import Batch, Data, Joined
from kdkit.errors import KdError
from kdkit.tasks import IGNORED, CausalLM, Task
from kdkit.tasks.contract import wide
from kdkit.training import Term
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.ensemble import mixture
from kdkit_distill.scheme.stage import SeveralTeachers, refuse
from kdkit_distill.signals import Exchange, Signal
from kdkit_distill.sources import Several, Source

if TYPE_CHECKING:
    from kdkit.context import Context

Objective = Literal["gated", "own-set", "concat"]
TOGETHER, WHERE_FROM = "the sources together", "the source it is of"
"""Under which names a training finds the data of --sources and what tells their teachers; no names that objects of a session can have."""


# Objectives ------------------------------------------------------------------------------------------------------------


def side_by_side(logits: Sequence[Tensor], sets: Sequence[Sequence[int]], classes: int, temperature: float) -> Tensor:
    """All teachers' logits in the union of their classes; of a class that several know, the mean of e^(z / T).

    Args:
        logits: (..., classes of the teacher), one a teacher.
        sets: the places of each teacher's classes in the union.
        classes: of the union.

    Returns:
        (..., classes): T · log mean_k e^(z_k / T), which is z itself where one teacher knows the class.

    >>> side_by_side([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])], [(0, 2), (1,)], 3, 4.0)
    tensor([[1., 3., 2.]])
    """
    spread = torch.stack([_spread(each, places, classes) for each, places in zip(logits, sets, strict=True)])
    known = torch.isfinite(torch.stack([_spread(torch.zeros_like(each[:1]), places, classes) for each, places in zip(logits, sets, strict=True)])).sum(0)
    return temperature * (torch.logsumexp(spread / temperature, 0) - known.to(spread.dtype).log())


def at_home(logits: Sequence[Tensor], sets: Sequence[Sequence[int]], classes: int, temperature: float, owners: Tensor) -> Tensor:
    """The mean of the probabilities of those teachers whose data an item is from; all other classes are ruled out.

    Args:
        logits: (batch, classes of the teacher), one a teacher.
        owners: (teachers, batch) bool; at least one teacher an item.

    Returns:
        (batch, classes): logits whose softmax at T is that mean.

    >>> said = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])]
    >>> at_home(said, [(0, 2), (1,)], 3, 1.0, torch.tensor([[True], [False]])).softmax(-1).round(decimals=2)
    tensor([[0.2700, 0.0000, 0.7300]])
    """
    spread = torch.stack([_spread(each, places, classes) for each, places in zip(logits, sets, strict=True)])
    shares = (owners / owners.sum(0).clamp_min(1)).view(*owners.shape, *[1] * (spread.ndim - 3))
    return mixture(spread, temperature, shares.expand(spread.shape[:-1]))


def _spread(logits: Tensor, places: Sequence[int], classes: int) -> Tensor:
    """Logits at their places in the union, and -inf everywhere else."""
    logits = wide(logits)
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
    own = wide(student).masked_fill(torch.isneginf(teacher), -torch.inf)
    return torch.logsumexp(wide(student), -1) - torch.logsumexp(own, -1)


def own_set(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`soft_labels` within the classes that the teacher does not rule out, the student scaled up to 1 there.

    >>> own_set(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.0, 2.0, -torch.inf]]))
    tensor([0.])
    """
    return soft_labels(wide(student).masked_fill(torch.isneginf(teacher), -torch.inf), teacher, temperature)


# Label sets ------------------------------------------------------------------------------------------------------------


def read_sets(text: str) -> tuple[list[tuple[int, ...]], list[str]]:
    """The places of each teacher's classes in the union, and the union's names, out of "a b|b c".

    Numbers are places themselves; names get theirs in the order in which they come.

    Raises:
        KdError: a set is empty or names a class twice, or numbers leave places out.

    >>> read_sets("cat dog|dog fish")
    ([(0, 1), (1, 2)], ['cat', 'dog', 'fish'])
    >>> read_sets("0 2|1 2")[0]
    [(0, 2), (1, 2)]
    """
    sets = [part.replace(",", " ").split() for part in text.split("|")]
    empty = [number for number, words in enumerate(sets, 1) if not words]
    twice = next((word for words in sets for word in words if words.count(word) > 1), None)
    if empty or twice:
        what = f"set {empty[0]} is empty" if empty else f"a set names {twice!r} twice"
        raise KdError(f"--classes {text!r}: {what}", 'a set a teacher, in the order of its head: --classes "cat dog|apple pear"')
    words = list(dict.fromkeys(word for words in sets for word in words))
    if all(word.isdigit() for word in words):
        places = sorted(map(int, words))
        if places != list(range(len(places))):
            raise KdError(f"--classes {text!r}: numbers are places in the student's head, 0 to {len(places) - 1}, and some are left out", "or give names instead")
        words = list(map(str, places))
    return [tuple(words.index(word) for word in each) for each in sets], words


class Merged(Several):
    """The teachers' answers in the union of their label sets.

    Args:
        names: of the teachers in the session.
        context: of the run.
        sets: the places of each teacher's classes in the union; None: one set after another.
        temperature: at which probabilities are averaged.
        origin: the teacher of each item of the training data by number, -1 where it is not known; None: by the labels.
        by_labels: whether labels tell where an item comes from.
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
                raise KdError(f"teacher {name} knows {width} classes, and --classes names {len(each)} for it", "name its classes in the order of its head")
        return self.sets

    def _owners(self, batch: Batch, sets: Sequence[tuple[int, ...]], device: torch.device) -> Tensor | None:
        """Which teachers' data each item is from, (teachers, batch) bool; None where nothing tells."""
        teachers = torch.arange(len(sets), device=device)[:, None]
        if self.origin is not None:
            return teachers == self._numbered(batch, self.origin).to(device)
        if not self.by_labels or not isinstance(batch.labels, Tensor) or batch.labels.is_floating_point() or batch.labels.ndim != 1:
            return None
        labels = batch.labels.to(device)
        return torch.stack([torch.isin(labels, torch.tensor(each, device=device)) for each in sets])

    def _numbered(self, batch: Batch, origin: Tensor) -> Tensor:
        if batch.numbers is None:
            raise KdError("--origin goes by the number of an item, and the training data has no numbers", "pass a dataset or arrays, not a stream of its own order")
        numbers = batch.numbers.cpu()
        if int(numbers.max()) >= len(origin):
            raise KdError(f"--origin has {len(origin)} entries, and the training data an item {int(numbers.max())}", "give the number of a teacher for each item")
        return origin[numbers]


class Merge(SeveralTeachers):
    """Unite the label sets of several teachers in one student.

    Loss per item, own = the classes of the teachers whose data it is from: gated: T² · KL(p ‖ softmax(z / T)) with p the own
    teacher's distribution, zero elsewhere; own-set: T² · KL within the own classes + -log of the student's mass on them;
    concat: KL to all logits side by side, for want of better where the origin is unknown. Classes that several teachers know
    have one place, and their probabilities are averaged. The student's head has the classes of the union. Where each teacher has
    a data set of its own, --sources names them; otherwise --origin, or the labels, tell whose an item is.
    """

    id: ClassVar[str] = "distill.merge"
    tried_as: ClassVar[str] = '--teachers {one} {other} --classes "0 1 2 3|0 1 2 3"'

    classes: str = param("", 'each teacher\'s classes, in the order of its head: "cat dog|apple pear" or places "0 1|2 3"; one set after another when not said')
    origin: str | None = param(None, "an object of the session: the number of each training item's teacher from 0, or -1; when not said, labels tell", refers="object")
    sources: tuple[str, ...] = param(
        (), "data sets, one a teacher in their order, trained on together in place of --data; labels, if any, are numbered as in its teacher's head", refers="data"
    )
    objective: Objective = param("gated", "what is learned of an item: its own teacher's answer, that and the mass on its classes apart, or all logits side by side")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.temperature_schedule != "constant":
            yield "distill merge averages probabilities of one temperature; leave out --temperature-schedule"
        if self.cache and self.objective != "concat" and not self.origin and not self.sources and self.share < 1:
            yield "--cache goes by inputs, and here labels tell each item's teacher; say it by --origin"
        if self.objective == "concat" and self.origin:
            yield "--objective concat asks nobody where an item comes from; leave out --origin"
        if self.classes and len(sets := read_sets(self.classes)[0]) != len(self.teachers):
            yield f"--classes names {len(sets)} sets for {len(self.teachers)} teachers; part them by |"
        if not self.sources:
            return
        if len(self.sources) != len(self.teachers):
            yield f"--sources wants a data set a teacher, in their order: {len(self.teachers)} teachers"
        if self.origin or "data" in self.changed():
            yield f"--sources is what is trained on, and tells each item's teacher; leave out {'--origin' if self.origin else '--data'}"
        if self.share < 1 and not self.classes:
            yield "the labels of --sources are numbered as in each teacher's head: --classes says what they are in the union, or --no-labels leaves them out"

    @property
    def shares_loop(self) -> bool:  # type: ignore[override]
        """In a group the data is that of the first line."""
        return not self.sources

    def references(self) -> Iterator[tuple[str, str, str]]:
        return (each for each in super().references() if each[0] != "data" or not self.sources)

    def needed(self) -> Needs:
        return replace(super().needed(), labels=False) if self.sources else super().needed()

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        yield from super().check(model, context)
        bare = [name for name in self.sources if self.share < 1 and not context.data(name).labelled]
        if bare:
            yield f"--sources {bare[0]} has no labels; --no-labels leaves all to the teachers"

    def unsuited(self, task: Task) -> str:
        return "it unites label sets, and a vocabulary is none" if isinstance(task, CausalLM) else super().unsuited(task)

    def source(self, context: Context) -> Source:
        refuse(self)
        sets = read_sets(self.classes)[0] if self.classes else None
        origin = None if self.origin is None else _read_origin(context.named(self.origin, "an object"), self.origin, len(self.teachers))
        by_labels = self.objective != "concat" and origin is None and self.share < 1
        return Merged(self.teachers, context, sets, self.temperature, origin, by_labels)

    def teach(self, model: nn.Module, context: Context) -> nn.Module:
        if self.sources:
            objects: Any = ChainMap({TOGETHER: self._together(context), WHERE_FROM: self._where_from(context)}, context.objects)  # type: ignore[arg-type]
            gated = self.objective != "concat"
            plain = self.model_copy(update={"sources": (), "data": TOGETHER, "origin": WHERE_FROM if gated else None})
            return plain.teach(model, replace(context, objects=objects))
        if self.objective != "concat":
            context.note(
                f"each item's teacher is told by {self.origin}"
                if self.origin
                else "each item's teacher is told by its label"
                if self.share < 1
                else "which teacher's data an item is from is not known, so all logits stand side by side; "
                "--origin {teacher_numbers}, or a data set a teacher in --sources, tells, and was worth 3 to 7 points of accuracy on digits"
            )
        return super().teach(model, context)

    def _together(self, context: Context) -> Data:
        """The sets as one, their labels as places in the union."""
        places = [torch.tensor(each) for each in read_sets(self.classes)[0]] if self.classes else []

        def placed(source: int, batch: Batch) -> Batch:
            if self.share == 1:
                return replace(batch, labels=None)
            labels = batch.labels
            if not isinstance(labels, Tensor) or labels.is_floating_point() or int(labels.max()) >= len(places[source]) or int(labels.min()) < min(0, IGNORED):
                raise KdError(f"--sources {self.sources[source]}: its labels are not numbers of the {len(places[source])} classes that --classes names for its teacher")
            return replace(batch, labels=torch.where(labels < 0, IGNORED, places[source][labels.clamp_min(0).long()]))

        return Joined([context.data(name) for name in self.sources], placed)

    def _where_from(self, context: Context) -> Tensor:
        """The number of each item's teacher, (items,)."""
        return torch.cat([torch.full((context.data(name).items or 0,), number) for number, name in enumerate(self.sources)])

    def terms(self, seen: Exchange) -> Iterable[Term]:
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

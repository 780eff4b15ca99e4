"""Agreement: where a student predicts the same as its teacher, where not, and which of the two is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.display.charts import bar_chart, heat_map
from kdkit.display.table import Cell, Table, number
from kdkit.errors import KdError
from kdkit.tasks import Call, CausalLM, Classification, Task

SHOWN = 20
"""Classes that have their own row and column; the rest is summed up."""
OTHERS = "others"

_RANGES = 10
_SIDES = ("both right", "only teacher", "only student", "both wrong")


@dataclass(frozen=True, repr=False)
class AgreementMatrix:
    """Predictions of two models on the same data.

    Attributes:
        student, teacher, data: their names.
        pairs: counts by (teacher's class, student's class); empty if the task has no classes.
        values: if the task has no classes, the agreement of each item; 1 if both outputs are the same.
        right: counts by (teacher is right, student is right); empty without labels.
        names: names of classes.

    >>> AgreementMatrix("@slim", "@base", "eval", Counter({(0, 0): 3, (0, 1): 1}), right=Counter({(True, True): 3, (True, False): 1}))
    @slim agrees with @base on 0.75 of 4 decisions on eval
    teacher, student  0  1
    0                 3  1
    1                 0  0
    <BLANKLINE>
    who is right  decisions  share
    both right            3   0.75
    only teacher          1   0.25
    only student          0      0
    both wrong            0      0
    """

    student: str
    teacher: str
    data: str
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    right: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    names: Callable[[int], str] = str

    @property
    def value(self) -> float:
        """The share of equal decisions, or the mean agreement."""
        if len(self.values):
            return float(self.values.mean())
        return sum(count for (one, two), count in self.pairs.items() if one == two) / sum(self.pairs.values())

    @property
    def count(self) -> int:
        """Number of decisions, or of items."""
        return len(self.values) or sum(self.pairs.values())

    @property
    def summary(self) -> str:
        """One line."""
        what = f"is {self.value:.3g} alike to {self.teacher}, on average of" if len(self.values) else f"agrees with {self.teacher} on {self.value:.3g} of"
        return f"{self.student} {what} {number(self.count)} {'answers' if len(self.values) else 'decisions'} on {self.data}"

    def grid(self) -> tuple[list[str], list[list[int]]]:
        """The names of the most frequent classes, and counts by the teacher's class (row) and the student's (column)."""
        return gathered(self.pairs, self.names)

    @property
    def verdict(self) -> Table | None:
        """How often each of the two is right; None without labels."""
        total = sum(self.right.values())
        if not total:
            return None
        counts = [self.right[key] for key in ((True, True), (True, False), (False, True), (False, False))]
        return Table(["who is right", "decisions", "share"], [[name, count, Cell(f"{count / total:.3g}")] for name, count in zip(_SIDES, counts, strict=True)])

    def ranges(self) -> dict[str, int]:
        """Number of values in each of ten ranges."""
        low = -1.0 if len(self.values) and float(self.values.min()) < 0 else 0.0
        bins = ((self.values.double() - low) / (1 - low) * _RANGES).long().clamp(0, _RANGES - 1)
        counts = torch.bincount(bins, minlength=_RANGES).tolist()
        return {f"{low + index * (1 - low) / _RANGES:.1f}": count for index, count in enumerate(counts)}

    def __repr__(self) -> str:
        if len(self.values):
            return f"{self.summary}\n{Table(['from', 'items'], [[name, count] for name, count in self.ranges().items()])}"
        names, cells = self.grid()
        grid = Table(["teacher, student", *names], [[name, *row] for name, row in zip(names, cells, strict=True)])
        return f"{self.summary}\n{grid}" + (f"\n\n{self.verdict}" if self.verdict else "")

    def _repr_html_(self) -> str:
        if len(self.values):
            picture = bar_chart(self.ranges(), "Agreement of each answer", "agreement, from")
        else:
            names, cells = self.grid()
            # others of the teacher need not be the others of the student, so that corner is no agreement
            picture = heat_map(cells, names, names, "Decisions", "teacher", "student")
        return f"<p>{escape(self.summary)}</p><div>{picture}</div>{self.verdict._repr_html_() if self.verdict else ''}"


def compare_predictions(
    task: Task, student: tuple[str, Call], teacher: tuple[str, Call], data: Data, named: str = "eval", names: Callable[[int], str] = str
) -> AgreementMatrix:
    """Compare the predictions of two models on a data set, in one pass.

    Args:
        task: turns outputs into predictions, and says which of them count.
        student, teacher: a name, and a function that returns the output for a batch, on the CPU.
        named: name of the data set.
        names: names of classes.

    Raises:
        KdError: the shapes of the predictions differ, or there is nothing to compare.

    >>> data = Data(lambda: [(torch.eye(3), torch.tensor([0, 1, 1]))], "three items")
    >>> compare_predictions(Classification(), ("a", lambda batch: batch.args[0]), ("b", lambda batch: -batch.args[0]), data).value
    0.0
    """
    made = AgreementMatrix(student[0], teacher[0], named, names=names)
    values: list[Tensor] = []
    with torch.no_grad():
        for batch in data.batches():
            one, two = teacher[1](batch), student[1](batch)
            if isinstance(task, Classification):
                decided = [task.decision(task.prediction(output, batch)) for output in (one, two)]
                _check(decided, made)
                made.pairs.update(counted(decided, task.mask(batch)))
                made.right.update(_right(task, one, two, batch, decided[0]))
            else:
                values.append(task.agreeing(two, one, batch).flatten().float().cpu())
    made = AgreementMatrix(made.student, made.teacher, named, made.pairs, torch.cat(values) if values else made.values, made.right, names)
    if not made.count:
        raise KdError(f"agreement: there is nothing to compare in {named}", "give data with at least one item that counts: --data {loader}")
    return made


def gathered(pairs: Counter[tuple[int, int]], names: Callable[[int], str]) -> tuple[list[str], list[list[int]]]:
    """The names of the most frequent classes, the rest summed up, and counts by the class of the one side (row) and of the other (column).

    >>> gathered(Counter({(0, 0): 3, (0, 2): 1}), str)
    (['0', '2'], [[3, 1], [0, 0]])
    """
    often: Counter[int] = Counter()
    for (one, two), count in pairs.items():
        often[one] += count
        often[two] += count
    shown = sorted(sorted(often), key=lambda each: -often[each])[:SHOWN]
    shown = sorted(shown)
    place = {each: index for index, each in enumerate(shown)}
    gathered = len(often) > len(shown)
    size = len(shown) + gathered
    cells = [[0] * size for _ in range(size)]
    for (one, two), count in pairs.items():
        cells[place.get(one, size - 1)][place.get(two, size - 1)] += count
    return [*map(names, shown), *([f"{OTHERS} ({len(often) - len(shown)})"] if gathered else [])], cells


def class_names(task: Task, student: nn.Module, teacher: nn.Module, tokenizer: Any = None) -> Callable[[int], str]:
    """The names of classes: the tokens of a language model, or those in a model's config; numbers otherwise.

    >>> class_names(Classification(), nn.Linear(2, 2), nn.Linear(2, 2))(1)
    '1'
    """
    if isinstance(task, CausalLM) and hasattr(tokenizer, "decode"):
        return lambda each: repr(tokenizer.decode([each]))
    for model in (student, teacher):
        known = getattr(getattr(model, "config", None), "id2label", None) or {}
        if not all(name == f"LABEL_{each}" for each, name in known.items()):
            return lambda each, known=known: str(known.get(each, each))  # type: ignore[misc]
    return str


def _check(decided: Sequence[Tensor], made: AgreementMatrix) -> None:
    if decided[0].shape != decided[1].shape:
        raise KdError(
            f"agreement: {made.teacher} decides {tuple(decided[0].shape)} times about a batch, {made.student} {tuple(decided[1].shape)} times",
            "both must predict equally many values for each item; check pooling, strides and tokenizers",
        )


def _kept(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None or mask.shape != values.shape else values[mask.to(values.device)]


def counted(decided: Sequence[Tensor], mask: Tensor | None) -> Counter[tuple[int, int]]:
    """Counts of each pair of classes, where the mask is true.

    >>> counted([torch.tensor([0, 1, 1]), torch.tensor([0, 0, 0])], None)
    Counter({(1, 0): 2, (0, 0): 1})
    """
    both = torch.stack([_kept(each, mask).flatten().cpu() for each in decided], -1)
    pairs, counts = both.unique(dim=0, return_counts=True)
    return Counter({(int(one), int(two)): int(count) for (one, two), count in zip(pairs, counts, strict=True)})


def _right(task: Task, teacher: object, student: object, batch: Batch, decided: Tensor) -> Counter[tuple[bool, bool]]:
    """Counts of (teacher is right, student is right), if labels decide it for each decision."""
    if batch.labels is None and task.needs_labels:
        return Counter()
    scores = [task.scores(output, batch).get("accuracy") for output in (teacher, student)]
    if any(score is None or score.shape != decided.shape for score in scores):
        return Counter()
    one, two = (_kept(score, task.labelled(batch)).flatten().bool().tolist() for score in scores if score is not None)
    return Counter(zip(one, two, strict=True))

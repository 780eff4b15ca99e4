"""Confusion: which class a model takes for which, labels against decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

import torch

from kdkit.agreement import SHOWN, counted, gathered
from kdkit.charts import heat_map
from kdkit.data import Data
from kdkit.errors import KdError
from kdkit.table import Cell, Table, number
from kdkit.tasks import Call, Classification, Task


@dataclass(frozen=True, repr=False)
class Confusion:
    """Labels and decisions, side by side.

    Attributes:
        version, data: how they are called.
        pairs: how often a class was right and another decided, by (label, decision).
        names: of classes.

    >>> Confusion("@slim", "eval", Counter({(0, 0): 3, (0, 1): 1, (1, 1): 4}))
    @slim is right in 0.875 of 8 decisions on eval; most often 0 is taken for 1 (1)
    label, decision  0  1
    0                3  1
    1                0  4
    <BLANKLINE>
    class  labels  decisions  recall  precision
    0           4          3    0.75          1
    1           4          5       1        0.8
    """

    version: str
    data: str
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    names: Callable[[int], str] = str

    @property
    def count(self) -> int:
        """Decisions that were looked at."""
        return sum(self.pairs.values())

    @property
    def accuracy(self) -> float:
        """The share of decisions that are right."""
        return sum(count for (label, decision), count in self.pairs.items() if label == decision) / self.count

    @property
    def worst(self) -> tuple[int, int] | None:
        """The label and decision that are confused most often; None where all is right."""
        wrong = {pair: count for pair, count in sorted(self.pairs.items()) if pair[0] != pair[1] and count}
        return max(wrong, key=wrong.__getitem__, default=None)

    @property
    def summary(self) -> str:
        """One line."""
        told = f"{self.version} is right in {self.accuracy:.3g} of {number(self.count)} decisions on {self.data}"
        if self.worst is None:
            return told
        label, decision = map(self.names, self.worst)
        return f"{told}; most often {label} is taken for {decision} ({self.pairs[self.worst]})"

    @property
    def classes(self) -> Table:
        """The most frequent labels: how many there are, how many were found, and how many of those that were decided are right."""
        labels, decisions, right = Counter[int](), Counter[int](), Counter[int]()
        for (label, decision), count in self.pairs.items():
            labels[label] += count
            decisions[decision] += count
            right[label] += count * (label == decision)
        shown = sorted(sorted({*labels, *decisions}, key=lambda each: (-labels[each], each))[:SHOWN])
        rows = [[self.names(each), labels[each], decisions[each], _share(right[each], labels[each]), _share(right[each], decisions[each])] for each in shown]
        return Table(["class", "labels", "decisions", "recall", "precision"], rows)

    @property
    def chart(self) -> str:
        """The map, as SVG."""
        names, cells = gathered(self.pairs, self.names)
        return heat_map(cells, names, names, f"Decisions of {self.version}", "label", "decision")

    def __repr__(self) -> str:
        names, cells = gathered(self.pairs, self.names)
        grid = Table(["label, decision", *names], [[name, *row] for name, row in zip(names, cells, strict=True)])
        return f"{self.summary}\n{grid}\n\n{self.classes}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.summary)}</p><div>{self.chart}</div>{self.classes._repr_html_()}"


def _share(part: int, whole: int) -> Cell:
    return Cell(f"{part / whole:.3g}" if whole else "")


def confusion(task: Task, version: str, call: Call, data: Data, named: str = "eval", names: Callable[[int], str] = str) -> Confusion:
    """Ask a model about a data set, in one pass.

    Args:
        task: tells what outputs come down to, and what is right.
        version: how the model is called.
        call: gives the output for a batch.
        named: how the data is called.
        names: of classes.

    Raises:
        KdError: the task has no classes, or there is not one label that counts.

    >>> data = Data(lambda: [(torch.eye(2), torch.tensor([0, 0]))], "two items")
    >>> confusion(Classification(), "@base", lambda batch: batch.args[0], data).pairs
    Counter({(0, 0): 1, (0, 1): 1})
    """
    if not isinstance(task, Classification):
        raise KdError(f"confusion needs classes, and the task is {task.name}", f"%kd agreement {version} shows how alike its answers are to another model's")
    pairs: Counter[tuple[int, int]] = Counter()
    with torch.no_grad():
        for batch in data.batches():
            output = call(batch)
            sides = [task.truth(output, batch), task.decision(task.prediction(output, batch))]
            pairs.update(counted(sides, task.labelled(batch)))
    if not pairs:
        raise KdError(f"confusion: not one label of {named} counts", "give data with labels: --data {loader}")
    return Confusion(version, named, pairs, names)

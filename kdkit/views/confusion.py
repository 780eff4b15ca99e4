"""The confusion matrix: labels against predicted classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

import torch

from kdkit.data import Data
from kdkit.display.charts import heat_map
from kdkit.display.table import Cell, Table, number
from kdkit.errors import KdError
from kdkit.tasks import Call, Classification, Task
from kdkit.views.agreement import SHOWN, counted, gathered


@dataclass(frozen=True, repr=False)
class ConfusionMatrix:
    """Counts of labels against predicted classes.

    Attributes:
        version, data: their names.
        pairs: counts by (label, predicted class).
        names: names of classes.

    >>> ConfusionMatrix("@slim", "eval", Counter({(0, 0): 3, (0, 1): 1, (1, 1): 4}))
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
        """Number of decisions."""
        return sum(self.pairs.values())

    @property
    def accuracy(self) -> float:
        """The share of correct decisions."""
        return sum(count for (label, decision), count in self.pairs.items() if label == decision) / self.count

    @property
    def worst(self) -> tuple[int, int] | None:
        """The label and predicted class that are confused most often; None if all decisions are correct."""
        wrong = {pair: count for pair, count in sorted(self.pairs.items()) if pair[0] != pair[1] and count}
        return max(wrong, key=wrong.__getitem__, default=None)

    @property
    def summary(self) -> str:
        """One line."""
        line = f"{self.version} is right in {self.accuracy:.3g} of {number(self.count)} decisions on {self.data}"
        if self.worst is None:
            return line
        label, decision = map(self.names, self.worst)
        return f"{line}; most often {label} is taken for {decision} ({self.pairs[self.worst]})"

    @property
    def classes(self) -> Table:
        """The most frequent labels, with their recall and precision."""
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
        """The heat map, as SVG."""
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


def confusion_matrix(task: Task, version: str, call: Call, data: Data, named: str = "eval", names: Callable[[int], str] = str) -> ConfusionMatrix:
    """The confusion matrix of a model on a data set, in one pass.

    Args:
        task: turns outputs into predicted classes, and batches into labels.
        version: name of the model.
        call: returns the output for a batch.
        named: name of the data set.
        names: names of classes.

    Raises:
        KdError: the task has no classes, or no label counts.

    >>> data = Data(lambda: [(torch.eye(2), torch.tensor([0, 0]))], "two items")
    >>> confusion_matrix(Classification(), "@base", lambda batch: batch.args[0], data).pairs
    Counter({(0, 0): 1, (0, 1): 1})
    """
    if not isinstance(task, Classification):
        raise KdError(f"confusion needs classes, and the task is {task.name}", f"%kd agreement {version} shows how similar its outputs are to another model's")
    pairs: Counter[tuple[int, int]] = Counter()
    with torch.no_grad():
        for batch in data.batches():
            output = call(batch)
            sides = [task.truth(output, batch), task.decision(task.prediction(output, batch))]
            pairs.update(counted(sides, task.labelled(batch)))
    if not pairs:
        raise KdError(f"confusion: not one label of {named} counts", "give data with labels: --data {loader}")
    return ConfusionMatrix(version, named, pairs, names)

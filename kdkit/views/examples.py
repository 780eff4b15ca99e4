"""Examples: the items whose answer changed from one version to another, and the confusion that arose."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from kdkit.data import Batch, Data
from kdkit.display.table import Cell, Table
from kdkit.errors import KdError
from kdkit.tasks import IGNORED, Call, CausalLM, Classification, SequenceToSequence, Task
from kdkit.views.items import item_html, item_text

PLACES = 5
"""Changed answers of one item, such as those of tokens, that are written out."""

_SIDES = {(True, False): "newly wrong", (False, True): "newly right", (False, False): "wrong before and after", (True, True): "right before and after"}


@dataclass(frozen=True)
class Example:
    """An item whose answer changed.

    Attributes:
        number: of the item in the data.
        text, html: the item.
        label: the true answer; empty if there is none.
        before, after: the two answers.
        confidence: of the answer now, 0 to 1; for tasks without classes, how much the two answers differ.
        side: how it turned out, such as "newly wrong"; empty without labels.
    """

    number: int
    text: str
    html: str
    label: str
    before: str
    after: str
    confidence: float
    side: str = ""


@dataclass(frozen=True, repr=False)
class ChangedAnswers:
    """Items that two versions answer otherwise.

    Attributes:
        version, against, data: their names.
        examples: the most confident first.
        changed, items: how many items changed, and how many there are.
        sides: how many decisions became wrong, right, or stayed wrong.
        confusion: how many decisions changed from one answer to another.
    """

    version: str
    against: str
    data: str
    examples: tuple[Example, ...]
    changed: int
    items: int
    sides: Counter[str]
    confusion: Counter[tuple[str, str]]

    @property
    def summary(self) -> str:
        """One line."""
        if not self.changed:
            return f"{self.version} answers all {self.items} items of {self.data} as {self.against} does"
        sides = ", ".join(f"{count} {side}" for side, count in self.sides.most_common())
        return f"{self.version} answers {self.changed} of {self.items} items of {self.data} otherwise than {self.against}" + (f": {sides}" if sides else "")

    @property
    def arisen(self) -> Table | None:
        """The changes of answer that occur most often; None for answers that are no classes."""
        rows = [[before, after, count] for (before, after), count in sorted(self.confusion.items(), key=lambda item: (-item[1], item[0]))[:10]]
        return Table([self.against, self.version, "decisions"], rows, "What changed most often") if rows else None

    def __repr__(self) -> str:
        rows = [[each.number, each.text, each.label, each.before, each.after, Cell(f"{each.confidence:.2f}"), each.side] for each in self.examples]
        table = Table(["item", "input", "label", self.against, self.version, "confidence", ""], rows)
        return "\n\n".join([self.summary, *([repr(table)] if rows else []), *([repr(self.arisen)] if self.arisen else [])])

    def _repr_html_(self) -> str:
        names = ("item", "input", "label", self.against, self.version, "confidence", "outcome")
        head = "".join(f'<th scope="col" style="text-align: left">{escape(name)}</th>' for name in names)
        rows = "".join(
            f'<tr><th scope="row">{each.number}</th><td>{each.html}</td>'
            + "".join(f'<td style="text-align: left; white-space: pre-wrap">{escape(text)}</td>' for text in (each.label, each.before, each.after))
            + f"<td>{each.confidence:.2f}</td><td>{escape(each.side)}</td></tr>"
            for each in self.examples
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
        return f"<p>{escape(self.summary)}</p>{table}{self.arisen._repr_html_() if self.arisen else ''}"


def changed_answers(
    task: Task,
    version: tuple[str, Call],
    against: tuple[str, Call],
    data: Data,
    named: str = "eval",
    count: int = 12,
    names: Callable[[int], str] = str,
    tokenizer: Any = None,
) -> ChangedAnswers:
    """The items of a data set whose answer changed, in one pass.

    Args:
        task: turns outputs into answers.
        version, against: a name, and a function that returns the output for a batch, on the CPU.
        named: name of the data set.
        count: how many items to show.
        names: names of classes.
        tokenizer: decodes items and answers of language models.

    Raises:
        KdError: the shapes of the two answers differ.

    >>> data = Data(lambda: [(torch.eye(2), torch.tensor([0, 1]))], "two items")
    >>> changed_answers(Classification(), ("@small", lambda batch: batch.args[0]), ("@base", lambda batch: -batch.args[0]), data).summary
    '@small answers 2 of 2 items of eval otherwise than @base: 2 newly right'
    """
    reader = _Reader(task, names, tokenizer)
    best: list[tuple[float, int, Example]] = []
    sides, confusion = Counter[str](), Counter[tuple[str, str]]()
    changed = items = 0
    with torch.no_grad():
        for batch in data.batches():
            for found in reader.read(against[1](batch), version[1](batch), batch):
                changed += 1
                sides.update(found.sides)
                confusion.update(found.pairs)
                number = items + found.place
                if len(best) < count or found.confidence > best[0][0]:
                    made = found.example(batch, number, tokenizer)
                    (heapq.heappush if len(best) < count else heapq.heapreplace)(best, (found.confidence, -number, made))
            items += batch.size
    examples = tuple(example for _, _, example in sorted(best, key=lambda entry: (-entry[0], -entry[1])))
    return ChangedAnswers(version[0], against[0], named, examples, changed, items, sides, confusion)


@dataclass(frozen=True)
class _Found:
    """An item of a batch whose answer changed."""

    place: int
    label: str
    before: str
    after: str
    confidence: float
    sides: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    def example(self, batch: Batch, number: int, tokenizer: Any) -> Example:
        side = self.sides[0] if len(self.sides) == 1 else ""
        text, html = item_text(batch, self.place, tokenizer), item_html(batch, self.place, tokenizer)
        return Example(number, text, html, self.label, self.before, self.after, self.confidence, side)


class _Reader:
    """Compares the outputs of two models for a batch."""

    def __init__(self, task: Task, names: Callable[[int], str], tokenizer: Any):
        self.task, self.names, self.tokenizer = task, names, tokenizer
        self.writes_text = isinstance(task, CausalLM | SequenceToSequence) and hasattr(tokenizer, "decode")

    def read(self, before: Any, after: Any, batch: Batch) -> list[_Found]:
        return self._classes(before, after, batch) if isinstance(self.task, Classification) else self._others(before, after, batch)

    def _classes(self, before: Any, after: Any, batch: Batch) -> list[_Found]:
        predictions = [self.task.prediction(output, batch).cpu() for output in (before, after)]
        one, two = (self.task.decision(prediction) for prediction in predictions)
        if one.shape != two.shape:
            times = f"one version decides {tuple(one.shape)} times about a batch, the other {tuple(two.shape)} times"
            raise KdError(f"examples: {times}", "both must predict equally many values for each item")
        size = batch.size
        one, two = one.reshape(size, -1), two.reshape(size, -1)
        sure = predictions[1].float().softmax(-1).amax(-1).reshape(size, -1)
        mask = self.task.mask(batch)
        counted = torch.ones_like(one, dtype=torch.bool) if mask is None or mask.numel() != one.numel() else mask.cpu().reshape(size, -1)
        truth = self._truth(after, batch, one)
        differs = (one != two) & counted
        changed = differs.any(1).nonzero().flatten().tolist()
        return [self._item(place, one[place], two[place], differs[place], counted[place], sure[place], truth[place]) for place in changed]

    def _truth(self, output: Any, batch: Batch, like: Tensor) -> Tensor:
        if batch.labels is None and self.task.needs_labels:
            return torch.full_like(like, IGNORED)
        found = self.task.truth(output, batch)
        return found.cpu().reshape(like.shape) if found.numel() == like.numel() else torch.full_like(like, IGNORED)

    def _item(self, place: int, one: Tensor, two: Tensor, differs: Tensor, counted: Tensor, sure: Tensor, truth: Tensor) -> _Found:
        where = differs.nonzero().flatten().tolist()
        pairs = tuple((self.names(int(one[each])), self.names(int(two[each]))) for each in where)
        labelled = [each for each in where if int(truth[each]) != IGNORED]
        sides = tuple(_SIDES[int(one[each]) == int(truth[each]), int(two[each]) == int(truth[each])] for each in labelled)
        label = self._text(truth, labelled, counted & (truth != IGNORED)) if labelled else ""
        before, after = self._text(one, where, counted), self._text(two, where, counted)
        return _Found(place, label, before, after, round(float(sure[differs].max()), 6), sides, pairs)

    def _text(self, values: Tensor, where: list[int], counted: Tensor) -> str:
        """Answers as text: all that counts for a language model, else those at the places that changed."""
        if self.writes_text:
            return str(self.tokenizer.decode(values[counted].tolist()))
        written = [self.names(int(values[each])) for each in where[:PLACES]]
        if len(values) > 1:
            written = [f"{each}: {name}" for each, name in zip(where, written, strict=False)]
        return "\n".join([*written, *(["…"] if len(where) > PLACES else [])])

    def _others(self, before: Any, after: Any, batch: Batch) -> list[_Found]:
        same = self.task.agreement(after, before, batch).float().cpu().reshape(batch.size, -1).mean(1)
        both = [self.task.decision(self.task.prediction(output, batch)).cpu() for output in (before, after)]
        labels = batch.labels if isinstance(batch.labels, Tensor) and len(batch.labels) == batch.size else None
        changed = [place for place in range(batch.size) if not torch.equal(both[0][place], both[1][place])]
        truth = ["" if labels is None else _numbers(labels[place]) for place in range(batch.size)]
        return [_Found(place, truth[place], _numbers(both[0][place]), _numbers(both[1][place]), float((1 - same[place]).clamp(0, 1))) for place in changed]


def _numbers(values: Tensor) -> str:
    """An answer that is no class, in short."""
    flat = values.flatten()
    if flat.dtype == torch.bool:
        return ", ".join(map(str, flat.nonzero().flatten().tolist())) or "none"
    return ", ".join([*(f"{value:.4g}" for value in flat[:PLACES].tolist()), *(["…"] if flat.numel() > PLACES else [])])

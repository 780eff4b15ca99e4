"""The task contract, and the means that every task's figures are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdkit.data import Batch, Data
from kdkit.errors import KdError

IGNORED = -100
"""The label of what does not count, as torch and HF have it."""

Call = Callable[[Batch], Any]
"""What gives a model's output for a batch."""


class Task:
    """How outputs and a batch become loss and metrics.

    A subclass gives `losses` and `agreement`, and `prediction` and `scores` where they are not plain; `evaluate` follows.

    Attributes:
        name: by which the task is chosen.
        metric: the figure by which versions are compared.
        better: "higher" or "lower", of that figure.
        needs_labels: whether there is no loss without labels.
        why: how the task was come by, one line.

    >>> class Pinball(Task):
    ...     name, metric = "pinball", "loss"
    ...     def losses(self, output, batch):
    ...         error = self.labels(batch) - self.prediction(output, batch)[:, 0]
    ...         return torch.maximum(0.9 * error, -0.1 * error)
    >>> data = Data(lambda: [(torch.zeros(2, 1), torch.tensor([1.0, -1.0]))], "two items")
    >>> round(Pinball().evaluate(lambda batch: batch.args[0], data)["loss"], 3)
    0.5
    """

    name: str = ""
    metric: str = "loss"
    better: str = "lower"
    needs_labels: bool = True
    why: str = ""

    def __init__(self, name: str = ""):
        self.name = name or self.name

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """What the model says, out of whatever it returned: (batch, classes), (batch, tokens, classes) or (batch, values).

        Args:
            batch: what it was said of; pooling over tokens can't do without it.
        """
        return tensor_of(output)

    def losses(self, output: Any, batch: Batch) -> Tensor:
        """The label loss, unreduced and at least float32: (batch,) or (batch, tokens); 0 where there is no label.

        Raises:
            KdError: the batch has no labels, or such as do not fit.
        """
        raise NotImplementedError

    def mask(self, batch: Batch) -> Tensor | None:
        """Which values count of those that stand one a token: (batch, tokens) bool; None where values stand one an item.

        Without labels it is what is not padding, so a teacher's signals can use it too.
        """
        return None

    def labelled(self, batch: Batch) -> Tensor | None:
        """Which of `losses` count, bool of their shape; None where all do."""
        return self.mask(batch)

    def count(self, batch: Batch) -> int:
        """Items or tokens that count: what a sum of `losses` is divided by."""
        counted = self.labelled(batch)
        return batch.size if counted is None else int(counted.sum())

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Figures of single items or tokens, shaped as `losses`, or with further dimensions."""
        return {"loss": self.losses(output, batch)}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of a set out of the float64 means of its scores."""
        return {name: float(mean) for name, mean in means.items()}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """How far two models' outputs agree: 1 where they say the same, one value an item, or a token (see `mask`)."""
        raise NotImplementedError

    def agreeing(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """The values of `agreement` that count."""
        same, real = self.agreement(output, other, batch), self.mask(batch)
        return same if real is None or real.shape != same.shape else same[real.to(same.device)]

    def decision(self, prediction: Tensor) -> Tensor:
        """What a prediction comes down to: a class for scores of classes, otherwise itself."""
        return prediction

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        """Metrics over a data set, in one pass.

        Raises:
            KdError: there are no labels, or not one that counts.
        """
        sums: dict[str, Tensor] = {}
        counted = 0
        with torch.no_grad():
            for batch in data.batches():
                for name, values in self.scores(call(batch), batch).items():
                    total = kept(values, self.labelled(batch)).double().sum(0).cpu()
                    sums[name] = sums[name] + total if name in sums else total
                counted += self.count(batch)
        if not counted:
            raise KdError(f"{self.name}: not one label of {data.why} counts", f"labels of {IGNORED} are left out")
        return self.summary({name: total / counted for name, total in sums.items()})

    def labels(self, batch: Batch) -> Tensor:
        """The labels of a batch.

        Raises:
            KdError: there are none.
        """
        if batch.labels is None:
            raise KdError(f"{self.name} needs labels, and the batch has none: {batch}", 'give batches of (inputs, labels), or dicts with "labels"')
        if not isinstance(batch.labels, Tensor):
            raise KdError(f"{self.name}: {len(batch.labels)} label tensors where one is wanted", "give a --loss and a --metric of your own for them")
        return batch.labels

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def tensor_of(output: Any, names: tuple[str, ...] = ("logits", "prediction", "predictions", "sentence_embedding", "last_hidden_state")) -> Tensor:
    """The tensor that matters in a model's output: the output itself, the first of `names` in it, or its first.

    Raises:
        KdError: there is none.

    >>> tensor_of({"loss": torch.zeros(()), "logits": torch.ones(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = [output[name] for name in names if output.get(name) is not None] or list(output.values())
    parts = output if isinstance(output, list | tuple) else ()
    found = next((part for part in parts if isinstance(part, Tensor) and part.ndim), None)
    if found is None:
        raise KdError(
            f"no tensor in the model's output, {type(output).__name__}", "write a Task whose prediction(output, batch) returns it, and offer it with kdkit_tasks"
        )
    return found


def wide(tensor: Tensor) -> Tensor:
    """At least float32: exponentials and sums in half precision are not to be trusted."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def kept(values: Tensor, counted: Tensor | None) -> Tensor:
    """The values that count, one a row."""
    return values if counted is None else values[counted.to(values.device)]

"""The base class of tasks, and its evaluation over a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.renaming import renamed_property
from kdkit.tasks.answers import main_tensor

IGNORED = -100
"""The label of items and tokens that do not count, as in torch and HF."""

Call = Callable[[Batch], Any]
"""A function: batch -> the model's output."""


class Task:
    """Computes the loss and the metrics from outputs and a batch.

    A subclass implements `losses` and `agreement`, and overrides `prediction` and `scores` if the defaults do not fit.

    Attributes:
        name: name of the task, for `--task`.
        metric: the figure that compares versions.
        better: whether "higher" or "lower" values of that figure are better.
        headlines: further figures that tables of versions show.
        needs_labels: whether the loss needs labels.
        predicts: what a prediction holds: "classes" (scores, softmax over the last dimension), "labels" (a score for each, sigmoid),
            "numbers", "vectors", or "other".
        reason: how the task was chosen, one line.
        output: which of several outputs of a model is the answer, by number or name; default: the one with a standard name, or the first.
        remark: what a reader of its figures must know, one line.
        loss_from_model: the model in train mode returns its losses, from `training_batch`; then its outputs in training hold no prediction.

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
    headlines: tuple[str, ...] = ()
    needs_labels: bool = True
    predicts: str = "other"
    reason: str = ""
    output: str = ""
    remark: str = ""
    loss_from_model: bool = False
    why = renamed_property("why", "reason")

    def __init__(self, name: str = ""):
        self.name = name or self.name

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """The model's prediction, from its output: (batch, classes), (batch, tokens, classes) or (batch, values).

        Args:
            batch: the batch that gave the output; pooling over tokens needs it.
        """
        return self.answer(output)

    def answer(self, output: Any) -> Tensor:
        """The tensor in a model's output that the task evaluates, as the model returned it; `output` names it.

        >>> task = Task("own")
        >>> task.output = "1"
        >>> task.answer((torch.zeros(2, 8), torch.zeros(2, 3))).shape
        torch.Size([2, 3])
        """
        return main_tensor(output, place=self.output)

    def training_batch(self, batch: Batch, model: nn.Module) -> Batch:
        """The batch that a model in train mode is called with; a model that computes its losses itself needs the labels among its inputs.

        >>> class Priced(Task):
        ...     loss_from_model = True
        ...     def training_batch(self, batch, model):
        ...         return Batch(batch.args, {**batch.kwargs, "targets": batch.labels})
        ...     def losses(self, output, batch):
        ...         return output["loss"].expand(batch.size)
        """
        return batch

    def losses(self, output: Any, batch: Batch) -> Tensor:
        """The label loss, unreduced and at least float32: (batch,) or (batch, tokens); 0 for what has no label.

        Raises:
            KdError: the batch has no labels, or they do not fit the output.
        """
        raise NotImplementedError

    def mask(self, batch: Batch) -> Tensor | None:
        """The tokens that count, (batch, tokens) bool, for a task with one value per token; None for one value per item.

        Without labels, all tokens except padding count, so that a teacher's signals can use the mask too.
        """
        return None

    def labelled(self, batch: Batch) -> Tensor | None:
        """The elements of `losses` that count, bool with their shape; None if all count."""
        return self.mask(batch)

    def count(self, batch: Batch) -> int:
        """The number of items or tokens that count: the divisor for a sum of `losses`."""
        counted = self.labelled(batch)
        return batch.size if counted is None else int(counted.sum())

    def divisor(self, batch: Batch) -> float:
        """The divisor for a sum of `losses`: `count`, or the sum of the class weights of a user's loss."""
        return self.count(batch)

    def criterion_arguments(self, output: Any, batch: Batch) -> tuple[Tensor, Any]:
        """Prediction and labels, as a user's own loss is called with them."""
        return self.prediction(output, batch), self.labels(batch)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Figures of single items or tokens, with the shape of `losses` or with more dimensions."""
        return {"loss": self.losses(output, batch)}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of a data set, from the float64 means of its scores."""
        return {name: float(mean) for name, mean in means.items()}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """Agreement of two models' outputs: 1 if they predict the same; one value per item, or per token (see `mask`)."""
        raise NotImplementedError

    def agreeing(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """The values of `agreement` that count."""
        same, real = self.agreement(output, other, batch), self.mask(batch)
        return same if real is None or real.shape != same.shape else same[real.to(same.device)]

    def decision(self, prediction: Tensor) -> Tensor:
        """The decision of a prediction: the class for class scores, otherwise the prediction itself."""
        return prediction

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        """Metrics over a data set, in one pass.

        Raises:
            KdError: there are no labels, or none that counts.
        """
        sums: dict[str, Tensor] = {}
        counted = 0
        with torch.no_grad():
            for batch in data.batches():
                for name, values in self.scores(call(batch), batch).items():
                    total = masked(values, self.labelled(batch)).double().sum(0).cpu()
                    sums[name] = sums[name] + total if name in sums else total
                counted += self.count(batch)
        if not counted:
            raise KdError(f"{self.name}: not one label of {data.reason} counts", f"labels of {IGNORED} are ignored")
        return self.summary({name: total / counted for name, total in sums.items()})

    def labels(self, batch: Batch) -> Tensor:
        """The labels of a batch.

        Raises:
            KdError: the batch has no labels, or several label tensors.
        """
        if batch.labels is None:
            raise KdError(f"{self.name} needs labels, and the batch has none: {batch}", 'give batches of (inputs, labels), or dicts with "labels"')
        if not isinstance(batch.labels, Tensor):
            raise KdError(f"{self.name}: {len(batch.labels)} label tensors, and the task needs one", "set your own --loss and --metric for them")
        return batch.labels

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, half precision as float32: exponentials and sums in half precision are inaccurate."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def masked(values: Tensor, counted: Tensor | None) -> Tensor:
    """The values that count, one per row."""
    return values if counted is None else values[counted.to(values.device)]

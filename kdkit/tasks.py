"""Tasks: how outputs and a batch become loss and metrics.

A task never reduces: its losses stand one an item, (batch,), or one a token, (batch, tokens), and `labelled` says which of
them count. Means are over what counts, so neither padding nor the way items are batched moves a figure.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit.data import Batch, Data, try_call
from kdkit.errors import KdError, did_you_mean
from kdkit.hookspecs import hookimpl

IGNORED = -100
"""The label of what does not count, as torch and HF have it."""

Call = Callable[[Batch], Any]


class Task:
    """How outputs and a batch become loss and metrics.

    A subclass gives `prediction`, `losses`, `scores` and `agreement`; `evaluate` is theirs from here.

    Attributes:
        name: by which the task is chosen.
        metric: the figure by which versions are compared.
        better: "higher" or "lower", of that figure.
        needs_labels: whether there is no loss without labels.
        why: how the task was come by, one line.
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
            batch: what it was said of; only pooling over tokens asks for it.
        """
        return tensor_of(output)

    def losses(self, output: Any, batch: Batch) -> Tensor:
        """The label loss, unreduced and at least float32: (batch,) or (batch, tokens); 0 where nothing counts.

        Raises:
            KdError: the batch has no labels, or such as do not fit.
        """
        raise NotImplementedError

    def mask(self, batch: Batch) -> Tensor | None:
        """Which positions are real, not padding or prompt: (batch, tokens) bool; None where each item counts.

        It is for signals that need no labels, such as a teacher's.
        """
        return None

    def labelled(self, batch: Batch) -> Tensor | None:
        """Which of `losses` count, as bool of their shape; None where all do."""
        return self.mask(batch)

    def count(self, batch: Batch) -> int:
        """Items or tokens that count in the loss: what a sum of `losses` is divided by."""
        counted = self.labelled(batch)
        return batch.size if counted is None else int(counted.sum())

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Figures of single items or tokens, shaped as `losses`, with further dimensions if need be."""
        return {"loss": self.losses(output, batch)}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of a set out of the means of its scores."""
        return {name: float(mean) for name, mean in means.items()}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """How far two models' outputs agree, 0 to 1 an item or token, no labels asked."""
        raise NotImplementedError

    def decision(self, prediction: Tensor) -> Tensor:
        """What the prediction comes down to: a class for scores of classes, otherwise itself."""
        return prediction

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        """Metrics over a data set, in one pass.

        Args:
            call: gives the model's output for a batch.

        Raises:
            KdError: there are no labels, or not one of them counts.
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
            raise KdError(f"{self.name}: not one label of {data.why} counts", f"labels of {IGNORED} are left out of the loss")
        return self.summary({name: total / counted for name, total in sums.items()})

    def labels(self, batch: Batch) -> Tensor:
        """The labels of a batch.

        Raises:
            KdError: there are none.
        """
        if batch.labels is None:
            raise KdError(f"{self.name} needs labels, and the batch has none: {batch}", 'give batches of (inputs, labels), or dicts with "labels"')
        if not isinstance(batch.labels, Tensor):
            raise KdError(f"{self.name}: labels are {type(batch.labels).__name__}, not a tensor", "give --loss and --metric of your own for them")
        return batch.labels

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def tensor_of(output: Any, names: tuple[str, ...] = ("logits", "prediction", "predictions", "sentence_embedding", "last_hidden_state")) -> Tensor:
    """The tensor that matters in a model's output: the output itself, a named one, or the first.

    >>> tensor_of({"loss": torch.zeros(()), "logits": torch.ones(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        found = next((output[name] for name in names if isinstance(output.get(name), Tensor)), None)
        return tensor_of(tuple(output.values())) if found is None else found
    if isinstance(output, list | tuple):
        found = next((item for item in output if isinstance(item, Tensor) and item.ndim), None)
        if found is not None:
            return found
    raise KdError(f"no tensor in the model's output, {type(output).__name__}", "write a Task whose prediction(output) returns it, and offer it with kdkit_tasks")


def wide(tensor: Tensor) -> Tensor:
    """At least float32: sums over half-precision numbers are not to be trusted."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def kept(values: Tensor, counted: Tensor | None) -> Tensor:
    """The values that count, one a row."""
    return values if counted is None else values[counted.to(values.device)]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] at each position; 0 where the label is ignored.

    Args:
        logits: (..., classes).
        labels: (...) int64, or (..., classes) probabilities.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([4.])
    """
    logits, labels = wide(logits), labels.to(logits.device)
    if labels.is_floating_point():
        return -(labels * logits.log_softmax(-1)).sum(-1)
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return flat.view(labels.shape)


class Classification(Task):
    """One of several classes an item: cross entropy, accuracy.

    A single logit counts as the second of two classes, the first having logit 0: the same loss as the logistic one.

    Args:
        probabilities: the model ends in softmax or sigmoid, so the logarithm of its outputs is taken.

    >>> task = Classification()
    >>> batch = Batch((torch.zeros(2, 1),), labels=torch.tensor([1, 0]))
    >>> task.scores(torch.tensor([[0.0, 9.0], [0.0, 9.0]]), batch)["accuracy"]
    tensor([1., 0.])
    """

    name = "classification"
    metric = "accuracy"
    better = "higher"

    def __init__(self, name: str = "", probabilities: bool = False):
        super().__init__(name)
        self.probabilities = probabilities

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        logits = tensor_of(output)
        if logits.ndim == 1:
            logits = logits[:, None]
        if self.probabilities:
            tiny = torch.finfo(logits.dtype).tiny
            return (logits if logits.shape[-1] > 1 else torch.cat([1 - logits, logits], -1)).clamp_min(tiny).log()
        return logits if logits.shape[-1] > 1 else torch.cat([torch.zeros_like(logits), logits], -1)

    def losses(self, output: Any, batch: Batch) -> Tensor:
        return cross_entropy(*self._fitted(output, batch))

    def labelled(self, batch: Batch) -> Tensor | None:
        labels = batch.labels
        return None if not isinstance(labels, Tensor) or labels.is_floating_point() else labels.flatten() != IGNORED

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self._fitted(output, batch)
        right = labels if not labels.is_floating_point() else labels.argmax(-1)
        return {"accuracy": (logits.argmax(-1) == right.to(logits.device)).float(), "loss": cross_entropy(logits, labels)}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """1 where both choose the same class."""
        one, two = self.decision(self.prediction(output, batch)), self.decision(self.prediction(other, batch))
        return (one == two.to(one.device)).float()

    def decision(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(-1)

    def _fitted(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, labels = self.prediction(output, batch), self.labels(batch)
        if labels.shape == (*logits.shape[:-1], 1):
            labels = labels[..., 0]
        if labels.is_floating_point() and labels.shape == logits.shape[:-1]:
            labels = _whole(labels, self.name)
        if labels.shape != logits.shape[: labels.ndim] or labels.ndim < logits.ndim - 1:
            raise KdError(
                f"{self.name}: labels {tuple(labels.shape)} do not fit outputs {tuple(logits.shape)}", "give one class an item, or the probabilities of all classes"
            )
        return logits, labels if labels.is_floating_point() else _in_range(labels, logits.shape[-1], self.name)


def _whole(labels: Tensor, name: str) -> Tensor:
    if not torch.equal(labels, labels.round()):
        raise KdError(f"{name}: labels are fractions, such as {labels.flatten()[0]:.4g}", "say --task regression for numbers")
    return labels.long()


def _in_range(labels: Tensor, classes: int, name: str) -> Tensor:
    beyond = (labels >= classes) | ((labels < 0) & (labels != IGNORED))
    if beyond.any():
        raise KdError(f"{name}: label {int(labels[beyond][0])}, and the model has {classes} outputs", f"classes are numbered 0 to {classes - 1}; {IGNORED} is left out")
    return labels


class TokenClassification(Classification):
    """One of several classes a token or pixel, (batch, tokens, classes) or (batch, classes, height, width): masked LM too.

    Padding (`attention_mask`) and labels of -100 do not count.
    """

    name = "token-classification"

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        logits = tensor_of(output)
        return super().prediction(logits.flatten(2).transpose(1, 2) if logits.ndim > 3 else logits)

    def mask(self, batch: Batch) -> Tensor | None:
        mask = batch.kwargs.get("attention_mask")
        return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def labels(self, batch: Batch) -> Tensor:
        labels = super().labels(batch)
        if labels.is_floating_point():
            return labels
        labels, mask = labels.flatten(1), self.mask(batch)
        return labels if mask is None or mask.shape != labels.shape else labels.masked_fill(~mask, IGNORED)

    def labelled(self, batch: Batch) -> Tensor | None:
        if batch.labels is None and self.needs_labels:
            return self.mask(batch)
        labels = self.labels(batch)
        return None if labels.is_floating_point() else labels != IGNORED


class CausalLM(TokenClassification):
    """The next token: position t is scored on token t + 1, and the last position on nothing.

    Labels are the inputs themselves where none are given; HF's own labels (not shifted) otherwise. Padding on either side
    does not count. Perplexity is exp of the mean loss a token over the whole set.
    """

    name = "causal-lm"
    metric = "perplexity"
    better = "lower"
    needs_labels = False

    def labels(self, batch: Batch) -> Tensor:
        """The label of each position, (batch, tokens): the next token, or -100."""
        tokens = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
        labels = tokens if batch.labels is None else super(TokenClassification, self).labels(batch)
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 2:
            raise KdError(f"{self.name} needs token numbers, (batch, tokens) integers, and the batch has {batch}", 'give dicts with "input_ids" and "attention_mask"')
        mask = batch.kwargs.get("attention_mask")
        following = torch.full_like(labels, IGNORED)
        following[:, :-1] = labels[:, 1:]
        if isinstance(mask, Tensor) and mask.shape == labels.shape:
            real = mask.bool()
            following[:, :-1].masked_fill_(~(real[:, 1:] & real[:, :-1]), IGNORED)
        return following

    def mask(self, batch: Batch) -> Tensor:
        return self.labels(batch) != IGNORED

    def labelled(self, batch: Batch) -> Tensor:
        return self.mask(batch)

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        return {"perplexity": float(means["loss"].exp()), **super().summary(means)}


class Regression(Task):
    """Numbers: squared error, its root over the set (rmse), mean absolute error, R² (mean over the outputs).

    >>> batch = Batch((torch.zeros(2, 1),), labels=torch.tensor([1.0, 2.0]))
    >>> Regression().losses(torch.tensor([[1.0], [4.0]]), batch)
    tensor([0., 4.])
    """

    name = "regression"
    metric = "rmse"
    better = "lower"

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        values = tensor_of(output)
        return values[:, None] if values.ndim == 1 else values.flatten(1)

    def losses(self, output: Any, batch: Batch) -> Tensor:
        values, labels = self._fitted(output, batch)
        return (values - labels).square().mean(-1)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        values, labels = (item.double() for item in self._fitted(output, batch))
        error = values - labels
        return {"loss": error.square().mean(-1), "mae": error.abs().mean(-1), "error²": error.square(), "label": labels, "label²": labels.square()}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        spread = means["label²"] - means["label"].square()
        figures = {"rmse": float(means["loss"].sqrt()), "mae": float(means["mae"])}
        if (spread > 1e-12 * means["label²"]).all():
            figures["r2"] = float((1 - means["error²"] / spread).mean())
        return figures | {"loss": float(means["loss"])}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """1 - |a - b| / max(|a|, |b|), at least 0; the mean over an item's outputs. It depends on no other item."""
        one, two = self.prediction(output, batch).double(), self.prediction(other, batch).double()
        largest = torch.maximum(one.abs(), two.abs())
        return (1 - (one - two).abs() / largest.where(largest > 0, 1)).clamp_min(0).mean(-1).float()

    def _fitted(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        values, labels = wide(self.prediction(output, batch)), self.labels(batch)
        labels = labels.to(values.device, values.dtype)
        labels = labels[:, None] if labels.ndim == 1 else labels.flatten(1)
        if labels.shape != values.shape:
            raise KdError(f"{self.name}: labels {tuple(labels.shape)} do not fit outputs {tuple(values.shape)}", "give as many numbers an item as the model has outputs")
        return values, labels


class Embedding(Task):
    """Vectors, one an item; those of tokens are pooled over what is not padding.

    With vectors as labels the loss is 1 - cosine. With classes as labels there is a figure (the share of items whose nearest
    other item is of the same class) and no loss; without labels neither: the agreement with the original tells what was lost.

    Args:
        pooling: "mean" over the tokens that are not padding, or "cls", the first.
    """

    name = "embedding"
    metric = "cosine"
    better = "higher"

    def __init__(self, name: str = "", pooling: str = "mean"):
        super().__init__(name)
        self.pooling = pooling

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        vectors = tensor_of(output, ("sentence_embedding", "text_embeds", "image_embeds", "last_hidden_state"))
        if vectors.ndim < 3:
            return vectors
        if self.pooling == "cls":
            return vectors[:, 0]
        if vectors.ndim == 4:
            return vectors.flatten(2).mean(-1)
        if batch is None:
            raise KdError(f"{self.name}: vectors of tokens, and no batch that tells which are padding", "call task.prediction(output, batch)")
        mask = batch.kwargs.get("attention_mask")
        return mean_pooled(vectors, mask if isinstance(mask, Tensor) else torch.ones(vectors.shape[:2], device=vectors.device))

    def losses(self, output: Any, batch: Batch) -> Tensor:
        vectors, labels = self.prediction(output, batch), self.labels(batch)
        if labels.shape != vectors.shape:
            raise KdError(
                f"{self.name}: labels {tuple(labels.shape)} do not fit vectors {tuple(vectors.shape)}", "give a vector an item as labels, or distil from a teacher"
            )
        return 1 - cosine(vectors, labels)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        losses = Embedding.losses(self, output, batch)
        return {"cosine": 1 - losses, "loss": losses}

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        example = data.example().labels
        if isinstance(example, Tensor) and example.is_floating_point():
            return super().evaluate(call, data)
        if example is None or example.ndim > 1:
            return {}
        with torch.no_grad():
            pairs = [(self.prediction(call(batch), batch), self.labels(batch)) for batch in data.batches()]
        vectors, labels = torch.cat([pair[0].cpu() for pair in pairs]), torch.cat([pair[1].cpu() for pair in pairs])
        if len(labels) < 2:
            return {}
        return {"neighbour_accuracy": float((labels[nearest(vectors)] == labels).double().mean())}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """The cosine between both models' vectors; -1 to 1."""
        return cosine(self.prediction(output, batch), self.prediction(other, batch))


def mean_pooled(vectors: Tensor, mask: Tensor) -> Tensor:
    """The mean of an item's token vectors that are not padding, as sentence-transformers have it.

    Args:
        vectors: (batch, tokens, hidden).
        mask: (batch, tokens), not 0 where a token is real.

    >>> mean_pooled(torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    weights = (mask != 0).to(vectors.device)[..., None]
    return wide(vectors).masked_fill(~weights, 0).sum(1) / weights.sum(1).clamp_min(1)


def cosine(one: Tensor, two: Tensor) -> Tensor:
    """The cosine of each pair of vectors, (batch,), float32 at least."""
    one = wide(one)
    return F.cosine_similarity(one, two.to(one.device, one.dtype), dim=-1)


def nearest(vectors: Tensor, chunk: int = 1024) -> Tensor:
    """For each vector the number of the nearest other one by cosine: (items,) int64.

    >>> nearest(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    tensor([1, 0, 1])
    """
    unit = F.normalize(wide(vectors), dim=-1)
    found = []
    for start in range(0, len(unit), chunk):
        near = unit[start : start + chunk] @ unit.T
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = -torch.inf
        found.append(near.argmax(-1))
    return torch.cat(found)


# Choosing ------------------------------------------------------------------------------------------------------------


@hookimpl
def kdkit_tasks() -> Iterable[Task]:
    """The kit's own tasks."""
    return [Classification(), TokenClassification(), Regression(), Embedding(), CausalLM()]


def tasks() -> dict[str, Task]:
    """All tasks by name, plugins' too."""
    from kdkit.plugins import manager

    return {task.name: task for found in manager().hook.kdkit_tasks() for task in found}


def task(kind: str | Task, loss: Callable | None = None, metric: Callable | None = None, better: str = "") -> Task:
    """A task by name, with a loss and a metric of the user's own if given.

    Args:
        kind: a name, or a task.
        loss: `loss(prediction, labels)`, a number, or better one an item. Losses of torch are asked for one an item.
        metric: `metric(predictions, labels)` over the whole set, on the CPU; functions that take `y_true` and `y_pred`, as
            scikit-learn's, are called by name with the decided classes.
        better: "higher" or "lower", of the metric; guessed from its name when not said ("lower" for losses and errors).

    Raises:
        KdError: no task has that name.

    >>> def hits(predictions, labels): return (predictions.argmax(-1) == labels).float().mean()
    >>> task("classification", metric=hits).metric
    'hits'
    """
    if isinstance(kind, str):
        known = tasks()
        if kind not in known:
            raise KdError(f"no task {kind!r}", did_you_mean(kind, known), f"tasks: {', '.join(sorted(known))}")
        kind = known[kind]
    if loss is None and metric is None:
        return kind
    made = copy.copy(kind)
    made.__class__ = type(f"Given{type(kind).__name__}", (Given, type(kind)), {})
    made._given_loss, made._given_metric = per_item(loss) if loss else None, metric  # type: ignore[attr-defined]
    if metric:
        made.metric, made.better = name_of(metric), better or better_of(metric)
    return made


class Given(Task):
    """A task whose loss, metric or both the user gave; made by `task`."""

    _given_loss: Callable | None
    _given_metric: Callable | None

    def losses(self, output: Any, batch: Batch) -> Tensor:
        if self._given_loss is None:
            return super().losses(output, batch)
        prediction = self.prediction(output, batch)
        return self._given_loss(wide(prediction), on(_required(self, batch), prediction.device))

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        own = {} if self._given_loss and self._given_metric else super().scores(output, batch)
        return own | ({"given loss": self.losses(output, batch)} if self._given_loss else {})

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        own = {name: mean for name, mean in means.items() if name != "given loss"}
        return (super().summary(own) if own else {}) | ({"loss": float(means["given loss"])} if "given loss" in means else {})

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        if self._given_metric is None:
            return super().evaluate(call, data)
        predictions, labels = [], []

        def watched(batch: Batch) -> Any:
            output = call(batch)
            counted = self.labelled(batch)
            predictions.append(kept(self.prediction(output, batch), counted).cpu())
            labels.append(_kept_labels(_required(self, batch), counted))
            return output

        figures = super().evaluate(watched, data)
        return {self.metric: judged(self._given_metric, self, torch.cat(predictions), _joined(labels))} | figures


def _required(task: Task, batch: Batch) -> Any:
    return task.labels(batch) if isinstance(batch.labels, Tensor | None) else batch.labels


def _kept_labels(labels: Any, counted: Tensor | None) -> Any:
    if isinstance(labels, tuple):
        return tuple(_kept_labels(part, counted) for part in labels)
    return kept(labels, counted).cpu()


def _joined(labels: list) -> Any:
    return tuple(map(torch.cat, zip(*labels, strict=True))) if isinstance(labels[0], tuple) else torch.cat(labels)


def on(labels: Any, device: torch.device) -> Any:
    """Labels, one tensor or several, on a device."""
    return tuple(on(part, device) for part in labels) if isinstance(labels, tuple) else labels.to(device)


def per_item(loss: Callable) -> Callable[[Tensor, Any], Tensor]:
    """The loss unreduced: torch's own with `reduction="none"`, others as they are, a single number standing for each item.

    >>> per_item(nn.MSELoss())(torch.ones(2, 3), torch.zeros(2, 3))
    tensor([1., 1.])
    """
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        loss = copy.copy(loss)
        loss.reduction = "none"
    elif not isinstance(loss, nn.Module) and "reduction" in _parameters(loss):
        loss = functools.partial(loss, reduction="none")

    def each(prediction: Tensor, labels: Any) -> Tensor:
        if isinstance(labels, Tensor) and labels.is_floating_point() and prediction.shape == (*labels.shape, 1):
            prediction = prediction[..., 0]
        values = loss(prediction, labels)
        if not isinstance(values, Tensor):
            raise KdError(f"the loss {name_of(loss)} gave {type(values).__name__}, not a tensor", "return a torch tensor, one number an item: (batch,)")
        if values.ndim == 0:
            return values.expand(len(prediction))
        return values if values.ndim == 1 or values.shape == prediction.shape[:-1] else values.flatten(1).mean(-1)

    return each


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def judged(metric: Callable, task: Task, predictions: Tensor, labels: Any) -> float:
    """The user's metric of a whole set."""
    names = _parameters(metric)
    if "y_true" in names and ("y_pred" in names or "y_score" in names):
        said = {"y_pred": task.decision(predictions).numpy()} if "y_pred" in names else {"y_score": predictions.numpy()}
        value = metric(y_true=labels.numpy(), **said)
    else:
        value = metric(predictions, labels)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise KdError(f"the metric {name_of(metric)} gave {type(value).__name__}, not a number", "return one number for the whole set") from error


def name_of(function: Callable) -> str:
    """The name of a user's function or object, as figures show it."""
    function = function.func if isinstance(function, functools.partial) else function
    return getattr(function, "__name__", type(function).__name__).strip("<>")


def better_of(metric: Callable) -> str:
    """Which way a user's metric is better: its attribute `better`, else by its name.

    >>> def word_error_rate(predictions, labels): ...
    >>> better_of(word_error_rate)
    'lower'
    """
    said = getattr(metric, "better", None)
    if said in ("higher", "lower"):
        return said
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name_of(metric)).lower())
    return "lower" if LOWER & set(words) else "higher"


LOWER = {"loss", "error", "err", "mse", "mae", "rmse", "mape", "perplexity", "ppl", "wer", "cer", "distance", "deviance", "divergence", "nll", "brier"}
"""Words in a metric's name that say that less is better."""


# Guessing ------------------------------------------------------------------------------------------------------------


def guess_task(model: nn.Module, batch: Batch) -> Task:
    """The task that a model and a batch most likely stand for; `.why` says what was assumed.

    The names of HF classes decide; otherwise the labels and the shape of the output for the first item.

    Raises:
        KdError: the model can't be called with the batch.
    """
    found, why = _by_name(model) or _by_shape(try_call(model, batch), batch, _last(model))
    found.why = why
    return found


_BY_NAME: list[tuple[str, Callable[[], Task]]] = [
    ("ForCausalLM|LMHeadModel", CausalLM),
    ("ForMaskedLM|ForTokenClassification|ForSemanticSegmentation", TokenClassification),
    ("For(Sequence|Image|Audio|Video)Classification", Classification),
]


def _by_name(model: nn.Module) -> tuple[Task, str] | None:
    model = getattr(model, "_orig_mod", model)
    name = type(model).__name__
    config = getattr(model, "config", None)
    for pattern, kind in _BY_NAME:
        if re.search(f"({pattern})$", name) and config is not None:
            problem, outputs = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
            if kind is Classification and (problem == "regression" or (problem is None and outputs == 1)):
                return Regression(), f"{name} with one output is a regression"
            return kind(), f"{name} says so"
    return None


def _last(model: nn.Module) -> nn.Module:
    return list(model.modules())[-1]


def _by_shape(output: Any, batch: Batch, last: nn.Module) -> tuple[Task, str]:
    named = isinstance(output, Mapping)
    if named and "last_hidden_state" in output and "logits" not in output:
        return Embedding(), "the model gives hidden states and has no head"
    found = tensor_of(output)
    shape = f"outputs ({', '.join(['batch', *map(str, found.shape[1:])])})"
    if isinstance(batch.labels, Tensor):
        return _by_labels(found, batch.labels, last, shape)
    change = "; say --task if it is something else"
    if found.ndim > 2:
        return TokenClassification(), f"{shape} and no labels: taken for scores of classes{change}"
    if found.ndim < 2 or found.shape[1] == 1:
        return Regression(), f"{shape} and no labels: taken for a number{change}"
    return _classes(found, last), f"{shape} and no labels: taken for scores of classes{change}"


def _by_labels(found: Tensor, labels: Tensor, last: nn.Module, shape: str) -> tuple[Task, str]:
    single = found.ndim < 2 or found.shape[1:] == (1,)
    if not labels.is_floating_point():
        if found.ndim > 2:
            return TokenClassification(), f"{shape} and integer labels"
        return _classes(found, last), f"{shape} and integer labels"
    if single and bool(((labels == 0) | (labels == 1)).all()) and len(labels) > 1:
        return _classes(found, last), "one output, and all labels of the first batch are 0 or 1: two classes"
    if not single and labels.shape[1:] == found.shape[1:] and bool((labels >= 0).all()) and torch.allclose(labels.sum(-1), torch.ones(())):
        return _classes(found, last), f"{shape} and labels that are probabilities"
    return Regression(), f"{shape} and float labels"


def _classes(found: Tensor, last: nn.Module) -> Classification:
    """Whether the outputs are logits or already probabilities can be seen by the model's last layer."""
    return Classification(probabilities=isinstance(last, nn.Softmax | nn.Sigmoid))

"""Tasks that predict numbers: regression and embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.tasks.answers import main_tensor
from kdkit.tasks.task import Call, Task, at_least_float32


class Regression(Task):
    """Numbers: squared error; over a data set its root (rmse), the mean absolute error, and R² (mean over the outputs).

    R² is absent if the labels of an output are all equal.

    >>> batch = Batch((torch.zeros(2, 1),), labels=torch.tensor([1.0, 2.0]))
    >>> Regression().losses(torch.tensor([[1.0], [4.0]]), batch)
    tensor([0., 4.])
    """

    name = "regression"
    metric = "rmse"
    better = "lower"
    predicts = "numbers"

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Numbers, (batch, outputs)."""
        found = self.answer(output)
        return found[:, None] if found.ndim == 1 else found.flatten(1)

    def losses(self, output: Any, batch: Batch) -> Tensor:
        predicted, true = self._fitted(output, batch)
        return (predicted - true).square().mean(-1)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        predicted, true = (numbers.double() for numbers in self._fitted(output, batch))
        error = predicted - true
        return {"mae": error.abs().mean(-1), "error²": error.square(), "label": true, "label²": true.square()}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        loss, spread = means["error²"].mean(), means["label²"] - means["label"].square()
        # below this, the difference of the two is rounding error
        known = bool((spread > 1e-12 * means["label²"]).all())
        r2 = {"r2": float((1 - means["error²"] / spread).mean())} if known else {}
        return {"rmse": float(loss.sqrt()), "mae": float(means["mae"]), **r2, "loss": float(loss)}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """1 - |a - b| / max(|a|, |b|), 0 if the signs differ; the mean over an item's outputs, independent of other items."""
        one = self.prediction(output, batch).double()
        two = self.prediction(other, batch).to(one.device, torch.float64)
        largest = torch.maximum(one.abs(), two.abs())
        apart = (one - two).abs() / largest.where(largest > 0, 1)
        return (1 - apart).clamp_min(0).mean(-1).float()

    def _fitted(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        predicted = at_least_float32(self.prediction(output, batch))
        true = self.labels(batch).to(predicted.device, predicted.dtype)
        true = true[:, None] if true.ndim == 1 else true.flatten(1)
        if true.shape != predicted.shape:
            raise KdError(f"{self.name}: labels {tuple(true.shape)} do not fit outputs {tuple(predicted.shape)}", "give one number per output for each item")
        return predicted, true


class Embedding(Task):
    """One vector per item; vectors of tokens are pooled without padding.

    What the labels are decides what is measured:

    - vectors, (batch, size): the cosine with them; the loss is 1 - cosine.
    - scores of pairs, (batch,) floats: items 2i and 2i + 1 are a pair, and both have its score. The figure is Spearman's rank
      correlation of the pairs' cosines with their scores; the loss is (cosine - score)², for scores from -1 to 1. A session makes
      such batches of ((one, two), score) for a model with one input.
    - class numbers: the share of items whose nearest other item, by cosine, has the same class; there is no loss.
    - none: the agreement with the original (the cosine) shows the loss of quality.

    Args:
        pooling: "mean" over the tokens that are not padding, or "cls", the first token.
        metric: "cosine", "spearman" for scores of pairs, or "neighbour_accuracy" for class numbers.
    """

    name = "embedding"
    better = "higher"
    predicts = "vectors"

    def __init__(self, name: str = "", pooling: str = "mean", metric: str = "cosine"):
        super().__init__(name)
        self.pooling, self.metric = pooling, metric

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Vectors, (batch, size)."""
        vectors = main_tensor(output, ("sentence_embedding", "text_embeds", "image_embeds", "last_hidden_state"), self.output)
        if vectors.ndim < 3:
            return vectors
        if vectors.ndim > 3:
            return vectors.flatten(2).mean(-1)
        if self.pooling == "cls":
            return vectors[:, 0]
        if batch is None:
            raise KdError(f"{self.name}: the model returns vectors of tokens, and a batch is needed to find the padding", "call task.prediction(output, batch)")
        mask = batch.kwargs.get("attention_mask")
        return mean_pooled(vectors, mask if isinstance(mask, Tensor) else torch.ones(vectors.shape[:2]))

    def losses(self, output: Any, batch: Batch) -> Tensor:
        vectors, labels = self.prediction(output, batch), self.labels(batch)
        if scores_of_pairs(labels):
            return self._losses_of_pairs(vectors, labels)
        if labels.shape != vectors.shape:
            raise KdError(
                f"{self.name}: labels {tuple(labels.shape)} do not fit vectors {tuple(vectors.shape)}", "give one vector per item as its label, or distil from a teacher"
            )
        return 1 - cosine(vectors, labels)

    def _losses_of_pairs(self, vectors: Tensor, labels: Tensor) -> Tensor:
        found = self._cosines_of_pairs(vectors)
        scores = labels[::2].to(found.device, found.dtype)
        if bool((scores.abs() > 1).any()):
            raise KdError(
                f"{self.name}: the score of a pair is {float(scores.abs().max()):g}, and a cosine is at most 1",
                "divide the scores by the largest possible one to train on them",
            )
        return (found - scores).square().repeat_interleave(2)

    def _cosines_of_pairs(self, vectors: Tensor) -> Tensor:
        """The cosine of each pair of items, (pairs,)."""
        if len(vectors) % 2:
            raise KdError(f"{self.name}: {len(vectors)} items are no pairs", "give batches of ((one, two), score), or items 2i and 2i + 1 as pairs")
        return cosine(vectors[::2], vectors[1::2])

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        losses = Embedding.losses(self, output, batch)
        return {"loss": losses} if scores_of_pairs(self.labels(batch)) else {"cosine": 1 - losses, "loss": losses}

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        """The figure for the kind of labels that the data has; nothing without labels."""
        labels = data.example().labels
        if isinstance(labels, Tensor) and scores_of_pairs(labels):
            return self._ranked_pairs(call, data)
        if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.ndim == 1:
            return self._neighbours(call, data)
        return {} if labels is None else super().evaluate(call, data)

    def _ranked_pairs(self, call: Call, data: Data) -> dict[str, float]:
        with torch.no_grad():
            found = [(self._cosines_of_pairs(self.prediction(call(batch), batch)).cpu(), self.labels(batch)[::2].cpu()) for batch in data.batches()]
        cosines, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        return {"spearman": rank_correlation(cosines, scores)}

    def _neighbours(self, call: Call, data: Data) -> dict[str, float]:
        with torch.no_grad():
            pairs = [(self.prediction(call(batch), batch).cpu(), self.labels(batch)) for batch in data.batches()]
        vectors, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return {"neighbour_accuracy": float((labels[nearest(vectors)] == labels).double().mean())} if len(labels) > 1 else {}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """The cosine between both models' vectors, -1 to 1."""
        return cosine(self.prediction(output, batch), self.prediction(other, batch))


def scores_of_pairs(labels: Tensor) -> bool:
    """Whether labels are scores, (batch,) floats, of pairs of items."""
    return labels.ndim == 1 and labels.is_floating_point()


def rank_correlation(one: Tensor, two: Tensor) -> float:
    """Spearman's rank correlation, -1 to 1; equal values have their mean rank; 0 if all values of a tensor are equal.

    >>> round(rank_correlation(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([1.0, 20.0, 300.0])), 6)
    1.0
    """
    centred = [(ranks := _ranks(values)) - ranks.mean() for values in (one, two)]
    spread = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / spread) if spread else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts.double() - 1) / 2)[place]


def mean_pooled(vectors: Tensor, mask: Tensor) -> Tensor:
    """The mean of an item's token vectors without padding, at least float32, as in sentence-transformers.

    Args:
        vectors: (batch, tokens, hidden).
        mask: (batch, tokens), 0 for padding.

    >>> mean_pooled(torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    real = (mask != 0).to(vectors.device)[..., None]
    return at_least_float32(vectors).masked_fill(~real, 0).sum(1) / real.sum(1).clamp_min(1)


def cosine(one: Tensor, two: Tensor) -> Tensor:
    """The cosine of each pair of vectors: two tensors (..., size) -> (...), at least float32.

    >>> cosine(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 2.0]])).round(decimals=5)
    tensor([1.])
    """
    one = at_least_float32(one)
    return F.cosine_similarity(one, two.to(one.device, one.dtype), dim=-1)


def nearest(vectors: Tensor, chunk: int = 1024) -> Tensor:
    """The index of the nearest other vector by cosine for each vector, (items,) int64; memory is chunk x items.

    >>> nearest(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    tensor([1, 0, 1])
    """
    unit = F.normalize(at_least_float32(vectors), dim=-1)
    found = []
    for start in range(0, len(unit), chunk):
        near = unit[start : start + chunk] @ unit.T
        near.diagonal(start).fill_(-torch.inf)
        found.append(near.argmax(-1))
    return torch.cat(found)

"""Tasks whose answer is numbers: a regression, an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.tasks.contract import Call, Task, tensor_of, wide


class Regression(Task):
    """Numbers: squared error; over a set its root (rmse), the mean absolute error, and R² (mean over the outputs).

    R² is absent where the labels of an output are all equal.

    >>> batch = Batch((torch.zeros(2, 1),), labels=torch.tensor([1.0, 2.0]))
    >>> Regression().losses(torch.tensor([[1.0], [4.0]]), batch)
    tensor([0., 4.])
    """

    name = "regression"
    metric = "rmse"
    better = "lower"

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Numbers, (batch, outputs)."""
        found = tensor_of(output)
        return found[:, None] if found.ndim == 1 else found.flatten(1)

    def losses(self, output: Any, batch: Batch) -> Tensor:
        said, true = self._fitted(output, batch)
        return (said - true).square().mean(-1)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        said, true = (numbers.double() for numbers in self._fitted(output, batch))
        error = said - true
        return {"mae": error.abs().mean(-1), "error²": error.square(), "label": true, "label²": true.square()}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        loss, spread = means["error²"].mean(), means["label²"] - means["label"].square()
        # beyond this the difference of the two is rounding
        known = bool((spread > 1e-12 * means["label²"]).all())
        r2 = {"r2": float((1 - means["error²"] / spread).mean())} if known else {}
        return {"rmse": float(loss.sqrt()), "mae": float(means["mae"]), **r2, "loss": float(loss)}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """1 - |a - b| / max(|a|, |b|), 0 where the signs differ; the mean over an item's outputs. No other item matters."""
        one = self.prediction(output, batch).double()
        two = self.prediction(other, batch).to(one.device, torch.float64)
        largest = torch.maximum(one.abs(), two.abs())
        apart = (one - two).abs() / largest.where(largest > 0, 1)
        return (1 - apart).clamp_min(0).mean(-1).float()

    def _fitted(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        said = wide(self.prediction(output, batch))
        true = self.labels(batch).to(said.device, said.dtype)
        true = true[:, None] if true.ndim == 1 else true.flatten(1)
        if true.shape != said.shape:
            raise KdError(f"{self.name}: labels {tuple(true.shape)} do not fit outputs {tuple(said.shape)}", "give as many numbers an item as the model has outputs")
        return said, true


class Embedding(Task):
    """Vectors, one an item; those of tokens are pooled over what is not padding.

    With vectors as labels the loss is 1 - cosine. With class numbers as labels there is no loss but a figure: the share of
    items whose nearest other item, by cosine, is of the same class. Without labels there is neither, and the agreement with
    the original (the cosine) tells what was lost.

    Args:
        pooling: "mean" over the tokens that are not padding, or "cls", the first token.
        metric: "cosine", or "neighbour_accuracy" where labels are class numbers.
    """

    name = "embedding"
    better = "higher"

    def __init__(self, name: str = "", pooling: str = "mean", metric: str = "cosine"):
        super().__init__(name)
        self.pooling, self.metric = pooling, metric

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Vectors, (batch, size)."""
        vectors = tensor_of(output, ("sentence_embedding", "text_embeds", "image_embeds", "last_hidden_state"))
        if vectors.ndim < 3:
            return vectors
        if vectors.ndim > 3:
            return vectors.flatten(2).mean(-1)
        if self.pooling == "cls":
            return vectors[:, 0]
        if batch is None:
            raise KdError(f"{self.name}: vectors of tokens, and no batch that tells which are padding", "call task.prediction(output, batch)")
        mask = batch.kwargs.get("attention_mask")
        return mean_pooled(vectors, mask if isinstance(mask, Tensor) else torch.ones(vectors.shape[:2]))

    def losses(self, output: Any, batch: Batch) -> Tensor:
        vectors, labels = self.prediction(output, batch), self.labels(batch)
        if labels.shape != vectors.shape:
            raise KdError(
                f"{self.name}: labels {tuple(labels.shape)} do not fit vectors {tuple(vectors.shape)}", "give a vector an item as its label, or distil from a teacher"
            )
        return 1 - cosine(vectors, labels)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        losses = Embedding.losses(self, output, batch)
        return {"cosine": 1 - losses, "loss": losses}

    def evaluate(self, call: Call, data: Data) -> dict[str, float]:
        """As any task with vectors for labels; `neighbour_accuracy` with class numbers; nothing without labels."""
        labels = data.example().labels
        if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.ndim == 1:
            return self._neighbours(call, data)
        return {} if labels is None else super().evaluate(call, data)

    def _neighbours(self, call: Call, data: Data) -> dict[str, float]:
        with torch.no_grad():
            pairs = [(self.prediction(call(batch), batch).cpu(), self.labels(batch)) for batch in data.batches()]
        vectors, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return {"neighbour_accuracy": float((labels[nearest(vectors)] == labels).double().mean())} if len(labels) > 1 else {}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """The cosine between both models' vectors, -1 to 1."""
        return cosine(self.prediction(output, batch), self.prediction(other, batch))


def mean_pooled(vectors: Tensor, mask: Tensor) -> Tensor:
    """The mean of an item's token vectors that are not padding, at least float32, as sentence-transformers have it.

    Args:
        vectors: (batch, tokens, hidden).
        mask: (batch, tokens), not 0 where a token is real.

    >>> mean_pooled(torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    real = (mask != 0).to(vectors.device)[..., None]
    return wide(vectors).masked_fill(~real, 0).sum(1) / real.sum(1).clamp_min(1)


def cosine(one: Tensor, two: Tensor) -> Tensor:
    """The cosine of each pair of vectors: (..., size) and the same -> (...), at least float32.

    >>> cosine(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 2.0]])).round(decimals=5)
    tensor([1.])
    """
    one = wide(one)
    return F.cosine_similarity(one, two.to(one.device, one.dtype), dim=-1)


def nearest(vectors: Tensor, chunk: int = 1024) -> Tensor:
    """For each vector the number of the nearest other one by cosine, (items,) int64; memory is chunk x items.

    >>> nearest(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    tensor([1, 0, 1])
    """
    unit = F.normalize(wide(vectors), dim=-1)
    found = []
    for start in range(0, len(unit), chunk):
        near = unit[start : start + chunk] @ unit.T
        near.diagonal(start).fill_(-torch.inf)
        found.append(near.argmax(-1))
    return torch.cat(found)

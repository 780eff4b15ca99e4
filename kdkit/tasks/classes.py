"""Tasks whose answer is a class: of an item, of a token, of several at once, of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks.contract import IGNORED, Task, tensor_of, wide


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label], unreduced, at least float32; 0 where the label is -100.

    Args:
        logits: (..., classes).
        labels: (...) int64, or (..., classes) probabilities.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([4.])
    """
    logits, labels = wide(logits), labels.to(logits.device)
    if labels.is_floating_point():
        return -(labels * logits.log_softmax(-1)).sum(-1)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED).view(labels.shape)


class Classification(Task):
    """One of several classes an item: cross entropy and accuracy.

    A single logit z stands for the two logits (0, z): the same loss as the logistic one. Labels are class numbers or
    probabilities of the classes; an item of label -100 has none.

    Args:
        probabilities: the model ends in softmax or sigmoid, so the logarithm of its outputs is taken.

    >>> batch = Batch((torch.zeros(2, 1),), labels=torch.tensor([1, 0]))
    >>> Classification().scores(torch.tensor([[0.0, 9.0], [0.0, 9.0]]), batch)["accuracy"]
    tensor([1., 0.])
    """

    name = "classification"
    metric = "accuracy"
    better = "higher"

    def __init__(self, name: str = "", probabilities: bool = False):
        super().__init__(name)
        self.probabilities = probabilities

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Logits, (batch, classes), two at the least."""
        found = tensor_of(output)
        found = found[:, None] if found.ndim == 1 else found
        single = found.shape[-1] == 1
        if not self.probabilities:
            return torch.cat([torch.zeros_like(found), found], -1) if single else found
        shares = torch.cat([1 - found, found], -1) if single else found
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()

    def losses(self, output: Any, batch: Batch) -> Tensor:
        return cross_entropy(*self._fitted(output, batch))

    def labelled(self, batch: Batch) -> Tensor | None:
        labels = batch.labels
        return None if not isinstance(labels, Tensor) or labels.is_floating_point() else labels.flatten() != IGNORED

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self._fitted(output, batch)
        return {"accuracy": (logits.argmax(-1) == _classes(labels)).float(), "loss": cross_entropy(logits, labels)}

    def truth(self, output: Any, batch: Batch) -> Tensor:
        """The right class of each decision, (batch,) or (batch, tokens); -100 where there is none.

        >>> Classification().truth(torch.zeros(2, 3), Batch((torch.zeros(2),), labels=torch.tensor([2, -100])))
        tensor([   2, -100])
        """
        return _classes(self._fitted(output, batch)[1])

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """1 where both choose the same class."""
        one, two = self.decision(self.prediction(output, batch)), self.decision(self.prediction(other, batch))
        return (one == two.to(one.device)).float()

    def decision(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(-1)

    def _fitted(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and labels that belong together."""
        logits = self.prediction(output, batch)
        labels = self.labels(batch).to(logits.device)
        shares = labels.is_floating_point() and labels.shape == logits.shape
        if not shares and labels.numel() == logits.shape[:-1].numel():
            labels = _class_numbers(labels.reshape(logits.shape[:-1]), logits.shape[-1], self.name)
        elif not shares:
            raise KdError(
                f"{self.name}: labels {tuple(labels.shape)} do not fit outputs {tuple(logits.shape)}",
                "give one class number an answer, or the probabilities of its classes",
            )
        return logits, labels


def _classes(labels: Tensor) -> Tensor:
    """Class numbers, of probabilities the likeliest."""
    return labels.argmax(-1) if labels.is_floating_point() else labels


def _class_numbers(labels: Tensor, classes: int, name: str) -> Tensor:
    numbers = labels.long()
    if labels.is_floating_point() and not torch.equal(numbers.to(labels.dtype), labels):
        raise KdError(f"{name}: the labels are fractions, not class numbers", "numbers to predict are --task regression")
    beyond = (numbers >= classes) | ((numbers < 0) & (numbers != IGNORED))
    if beyond.any():
        raise KdError(
            f"{name}: a label is {int(numbers[beyond][0])}, and the model has {classes} classes", f"classes are numbered from 0 to {classes - 1}; {IGNORED} is left out"
        )
    return numbers


class TokenClassification(Classification):
    """One of several classes a token, (batch, tokens, classes), or a pixel, (batch, classes, height, width); masked LM too.

    Padding (by `attention_mask`) and labels of -100 do not count. Pixels are taken row by row as tokens.
    """

    name = "token-classification"

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Logits, (batch, tokens, classes)."""
        found = tensor_of(output)
        return super().prediction(found.flatten(2).transpose(1, 2) if found.ndim > 3 else found)

    def labels(self, batch: Batch) -> Tensor:
        """Class numbers with -100 wherever they do not count, (batch, tokens); or probabilities, (batch, tokens, classes)."""
        labels, real = super().labels(batch), _attention(batch)
        if labels.is_floating_point():
            return labels
        labels = labels.flatten(1)
        return labels if real is None or real.shape != labels.shape else labels.masked_fill(~real, IGNORED)

    def mask(self, batch: Batch) -> Tensor | None:
        if isinstance(batch.labels, Tensor) and not batch.labels.is_floating_point():
            return self.labels(batch) != IGNORED
        real, tokens = _attention(batch), _tokens(batch)
        return torch.ones_like(tokens, dtype=torch.bool) if real is None and tokens is not None else real

    def labelled(self, batch: Batch) -> Tensor | None:
        return self.mask(batch)


def _attention(batch: Batch) -> Tensor | None:
    mask = batch.kwargs.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _tokens(batch: Batch) -> Tensor | None:
    """Token numbers, (batch, tokens), if that is what the inputs are."""
    tokens = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    return tokens if isinstance(tokens, Tensor) and tokens.ndim == 2 and not tokens.is_floating_point() else None


class CausalLM(TokenClassification):
    """The next token: position t is scored on token t + 1, the last position on nothing.

    The labels are HF's, not shifted, or where none are given the inputs themselves. Padding on either side does not count,
    nor does a label of -100 (a prompt). Perplexity is exp of the mean loss a token over the whole set.

    >>> batch = Batch(kwargs={"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])})
    >>> CausalLM().labels(batch)
    tensor([[   6, -100, -100]])
    """

    name = "causal-lm"
    metric = "perplexity"
    better = "lower"
    needs_labels = False

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Logits, (batch, tokens, vocabulary), without those of virtual tokens that prompt tuning put in front."""
        logits, tokens = super().prediction(output), None if batch is None else _tokens(batch)
        return logits if tokens is None else logits[:, -tokens.shape[1] :]

    def labels(self, batch: Batch) -> Tensor:
        """The label of each position, (batch, tokens): the next token, or -100."""
        tokens = _tokens(batch) if batch.labels is None else batch.labels
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
            raise KdError(f"{self.name} needs token numbers, (batch, tokens) integers; the batch has {batch}", 'give dicts with "input_ids" and "attention_mask"')
        following = F.pad(tokens[:, 1:], (0, 1), value=IGNORED)
        real = _attention(batch)
        if real is None or real.shape != tokens.shape:
            return following
        return following.masked_fill(~(real & F.pad(real[:, 1:], (0, 1))), IGNORED)

    def mask(self, batch: Batch) -> Tensor:
        return self.labels(batch) != IGNORED

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        return {"perplexity": float(means["loss"].exp()), **super().summary(means)}


class MultiLabel(Task):
    """Any number of classes an item: logistic loss (mean over the classes), F1 over all decisions (micro), their accuracy.

    Labels are 0 or 1 for each class, (batch, classes).
    """

    name = "multilabel"
    metric = "f1"
    better = "higher"

    def losses(self, output: Any, batch: Batch) -> Tensor:
        logits, labels = self._fitted(output, batch)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self._fitted(output, batch)
        said, true = self.decision(logits), labels.bool()
        found = {"both": said & true, "either": said.long() + true.long(), "accuracy": said == true}
        return {"loss": MultiLabel.losses(self, output, batch)} | {name: values.float().mean(-1) for name, values in found.items()}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        f1 = {"f1": float(2 * means["both"] / means["either"])} if means["either"] else {}
        return f1 | {name: float(means[name]) for name in ("accuracy", "loss")}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """The share of classes about which both decide alike."""
        one, two = self.decision(self.prediction(output, batch)), self.decision(self.prediction(other, batch))
        return (one == two.to(one.device)).float().mean(-1)

    def decision(self, prediction: Tensor) -> Tensor:
        return prediction > 0

    def _fitted(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = wide(self.prediction(output, batch))
        labels = self.labels(batch).to(logits.device, logits.dtype)
        if labels.shape != logits.shape:
            raise KdError(f"{self.name}: labels {tuple(labels.shape)} do not fit outputs {tuple(logits.shape)}", "give 0 or 1 for each class: (batch, classes)")
        return logits, labels

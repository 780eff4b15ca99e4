"""Tasks that predict classes: one per item, one per token, several per item, or the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.tasks.task import IGNORED, Task, at_least_float32


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label], unreduced, at least float32; 0 for the label -100.

    Args:
        logits: (..., classes).
        labels: (...) int64, or (..., classes) probabilities.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor([4.])
    """
    logits, labels = at_least_float32(logits), labels.to(logits.device)
    if labels.is_floating_point():
        return -(labels * logits.log_softmax(-1)).sum(-1)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED).view(labels.shape)


class Classification(Task):
    """One class per item: cross entropy and accuracy.

    A single logit z is equivalent to the two logits (0, z), which give the logistic loss. Labels are class numbers or
    probabilities of the classes; an item with label -100 is ignored.

    Args:
        probabilities: the model ends in softmax or sigmoid, so the task takes the logarithm of its outputs.
        ignore_index: another label that is ignored, such as 255 for pixels without a class.

    >>> batch = Batch((torch.zeros(2, 1),), labels=torch.tensor([1, 0]))
    >>> Classification().scores(torch.tensor([[0.0, 9.0], [0.0, 9.0]]), batch)["accuracy"]
    tensor([1., 0.])
    """

    name = "classification"
    metric = "accuracy"
    better = "higher"
    predicts = "classes"

    def __init__(self, name: str = "", probabilities: bool = False, ignore_index: int = IGNORED):
        super().__init__(name)
        self.probabilities, self.ignore_index = probabilities, ignore_index

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Logits, (batch, classes), with at least two classes."""
        return self._scores_of_classes(self.answer(output))

    def _scores_of_classes(self, found: Tensor) -> Tensor:
        """Logits, (..., classes), with at least two classes."""
        found = found[:, None] if found.ndim == 1 else found
        single = found.shape[-1] == 1
        if not self.probabilities:
            return torch.cat([torch.zeros_like(found), found], -1) if single else found
        shares = torch.cat([1 - found, found], -1) if single else found
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()

    def labels(self, batch: Batch) -> Tensor:
        """Class numbers, (batch,), with -100 for what does not count; or probabilities, (batch, classes)."""
        labels = self.given_labels(batch)
        return labels.float() if _is_one_hot(labels) else labels

    def given_labels(self, batch: Batch) -> Tensor:
        """The labels of a batch, with -100 for those of `ignore_index`."""
        labels = super().labels(batch)
        return labels if self.ignore_index == IGNORED else labels.masked_fill(labels == self.ignore_index, IGNORED)

    def losses(self, output: Any, batch: Batch) -> Tensor:
        return cross_entropy(*self._fitted(output, batch))

    def labelled(self, batch: Batch) -> Tensor | None:
        if not isinstance(batch.labels, Tensor):
            return None
        labels = self.labels(batch)
        return None if labels.is_floating_point() else labels.flatten() != IGNORED

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self._fitted(output, batch)
        return {"accuracy": (logits.argmax(-1) == _classes(labels)).float(), "loss": cross_entropy(logits, labels)}

    def criterion_arguments(self, output: Any, batch: Batch) -> tuple[Tensor, Any]:
        """The scores as the model returned them, and the labels in the shape that the data has."""
        labels = self.labels(batch)
        return self.answer(output), labels.reshape(batch.labels.shape) if isinstance(batch.labels, Tensor) and not labels.is_floating_point() else batch.labels

    def truth(self, output: Any, batch: Batch) -> Tensor:
        """The true class of each decision, (batch,) or (batch, tokens); -100 if it has no label.

        >>> Classification().truth(torch.zeros(2, 3), Batch((torch.zeros(2),), labels=torch.tensor([2, -100])))
        tensor([   2, -100])
        """
        return _classes(self._fitted(output, batch)[1])

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """1 if both outputs predict the same class, otherwise 0; (batch,) or (batch, tokens)."""
        one, two = self.decision(self.prediction(output, batch)), self.decision(self.prediction(other, batch))
        return (one == two.to(one.device)).float()

    def decision(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(-1)

    def _fitted(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits, and labels with matching shapes."""
        logits = self.prediction(output, batch)
        labels = self.labels(batch).to(logits.device)
        if logits.ndim > 2 and not isinstance(self, TokenClassification):
            raise self._misfit(labels, logits)
        shares = labels.is_floating_point() and labels.shape == logits.shape
        if not shares and labels.numel() == logits.shape[:-1].numel():
            labels = _class_numbers(labels.reshape(logits.shape[:-1]), logits.shape[-1], self)
        elif not shares:
            raise self._misfit(labels, logits)
        return logits, labels

    def _misfit(self, labels: Tensor, logits: Tensor) -> KdError:
        places = logits.ndim > 2 and not isinstance(self, TokenClassification)
        return KdError(
            f"{self.name}: labels {tuple(labels.shape)} do not fit outputs {tuple(logits.shape)}",
            "for one class per pixel: --task segmentation; per token: --task token-classification" if places else "",
            "give one class number per prediction, or the probabilities of its classes",
        )


def _is_one_hot(labels: Tensor) -> bool:
    """Whether integer labels, (batch, classes), have a 1 at the class of each item."""
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.is_floating_point():
        return False
    return bool(((labels == 0) | (labels == 1)).all() & (labels.sum(1) == 1).all())


def _classes(labels: Tensor) -> Tensor:
    """Class numbers; for probabilities, the most likely class."""
    return labels.argmax(-1) if labels.is_floating_point() else labels


def _class_numbers(labels: Tensor, classes: int, task: Classification) -> Tensor:
    numbers = labels.long()
    if labels.is_floating_point() and not torch.equal(numbers.to(labels.dtype), labels):
        bad = "nan" if labels.isnan().any() else "fractions"
        raise KdError(f"{task.name}: the labels are {bad}, not class numbers", "" if bad == "nan" else "to predict numbers, set --task regression")
    beyond = (numbers >= classes) | ((numbers < 0) & (numbers != IGNORED))
    if beyond.any():
        wrong = int(numbers[beyond][0])
        raise KdError(
            f"{task.name}: a label is {wrong}, and the model has {classes} classes, numbered from 0 to {classes - 1}",
            f"labels of {IGNORED} are ignored; to ignore {wrong} too: --task {{kdkit.tasks.{type(task).__name__}(ignore_index={wrong})}}",
            "if 255 is the foreground of a mask: (mask > 0)" if wrong == 255 and classes == 2 else "",
        )
    return numbers


class TokenClassification(Classification):
    """One class per token, (batch, tokens, classes); also masked LM. `Segmentation` is the same for pixels.

    Padding (from `attention_mask`) and labels of -100 do not count. A map (batch, classes, height, width) is read row by row.
    """

    name = "token-classification"

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Logits, (batch, tokens, classes)."""
        found = self.answer(output)
        return self._scores_of_classes(found.flatten(2).transpose(1, 2) if found.ndim > 3 else found)

    def labels(self, batch: Batch) -> Tensor:
        """Class numbers, (batch, tokens), with -100 for tokens that do not count; or probabilities, (batch, tokens, classes)."""
        labels, real = self.given_labels(batch), _attention(batch)
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
    """Token ids, (batch, tokens), if the inputs are token ids."""
    tokens = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    return tokens if isinstance(tokens, Tensor) and tokens.ndim == 2 and not tokens.is_floating_point() else None


class CausalLM(TokenClassification):
    """The next token: position t is scored on token t + 1; the last position is not scored.

    Labels are as in HF: not shifted; default: the inputs. Padding on either side and labels of -100 (a prompt) do not count.
    Perplexity is exp of the mean loss per token over the data set.

    >>> batch = Batch(kwargs={"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])})
    >>> CausalLM().labels(batch)
    tensor([[   6, -100, -100]])
    """

    name = "causal-lm"
    metric = "perplexity"
    better = "lower"
    needs_labels = False

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Logits, (batch, tokens, vocabulary), without the virtual tokens that prompt tuning adds at the start."""
        logits, tokens = super().prediction(output), None if batch is None else _tokens(batch)
        return logits if tokens is None else logits[:, -tokens.shape[1] :]

    def labels(self, batch: Batch) -> Tensor:
        """The label of each position, (batch, tokens): the next token, or -100."""
        tokens = _tokens(batch) if batch.labels is None else batch.labels
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
            raise KdError(f"{self.name} needs token ids, (batch, tokens) integers; the batch has {batch}", 'give dicts with "input_ids" and "attention_mask"')
        following = F.pad(tokens[:, 1:], (0, 1), value=IGNORED)
        real = _attention(batch)
        if real is None or real.shape != tokens.shape:
            return following
        return following.masked_fill(~(real & F.pad(real[:, 1:], (0, 1))), IGNORED)

    def mask(self, batch: Batch) -> Tensor:
        return self.labels(batch) != IGNORED

    def criterion_arguments(self, output: Any, batch: Batch) -> tuple[Tensor, Any]:
        """Logits, (batch, tokens, vocabulary), and the next token of each position."""
        return self.prediction(output, batch), self.labels(batch)

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        return {"perplexity": float(means["loss"].exp()), **super().summary(means)}


class MultiLabel(Task):
    """Any number of classes per item: logistic loss (mean over the classes), micro F1 over all decisions, and their accuracy.

    Labels are 0 or 1 for each class, (batch, classes). Maps, (batch, classes, height, width), are decisions of each place.

    Args:
        probabilities: the model ends in a sigmoid, so the task takes the logit of its outputs.
    """

    name = "multilabel"
    metric = "f1"
    better = "higher"
    predicts = "labels"

    def __init__(self, name: str = "", probabilities: bool = False):
        super().__init__(name)
        self.probabilities = probabilities

    def prediction(self, output: Any, batch: Batch | None = None) -> Tensor:
        """Logits, (batch, classes); for maps (batch, classes · places)."""
        found = self.answer(output)
        found = found[:, None] if found.ndim == 1 else found.flatten(1)
        return found.logit(torch.finfo(found.dtype).eps) if self.probabilities else found

    def losses(self, output: Any, batch: Batch) -> Tensor:
        logits, labels = self._fitted(output, batch)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)

    def scores(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self._fitted(output, batch)
        predicted, true = self.decision(logits), labels.bool()
        found = {"both": predicted & true, "either": predicted.long() + true.long(), "accuracy": predicted == true}
        return {"loss": MultiLabel.losses(self, output, batch)} | {name: values.float().mean(-1) for name, values in found.items()}

    def summary(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        f1 = {"f1": float(2 * means["both"] / means["either"])} if means["either"] else {}
        return f1 | {name: float(means[name]) for name in ("accuracy", "loss")}

    def agreement(self, output: Any, other: Any, batch: Batch) -> Tensor:
        """The share of classes for which both outputs give the same decision, (batch,)."""
        one, two = self.decision(self.prediction(output, batch)), self.decision(self.prediction(other, batch))
        return (one == two.to(one.device)).float().mean(-1)

    def decision(self, prediction: Tensor) -> Tensor:
        return prediction > 0

    def _fitted(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = at_least_float32(self.prediction(output, batch))
        labels = self.labels(batch).to(logits.device, logits.dtype)
        labels = labels[:, None] if labels.ndim == 1 else labels.flatten(1)
        if labels.shape != logits.shape:
            raise KdError(f"{self.name}: labels {tuple(labels.shape)} do not fit outputs {tuple(logits.shape)}", "give 0 or 1 for each class: (batch, classes)")
        beyond = ~((labels >= 0) & (labels <= 1))
        if beyond.any():
            raise KdError(f"{self.name}: a label is {float(labels[beyond][0]):g}, not 0 or 1", "give 0 or 1 for each class: (batch, classes)")
        return logits, labels

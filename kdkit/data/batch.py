"""A batch, and the forms in which loaders give one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kdkit.data.tensors import as_tensor, is_text
from kdkit.data.true_boxes import true_boxes
from kdkit.errors import KdError

LABEL_KEYS = ("labels", "label", "label_ids", "target", "targets", "y")
"""Keys under which dict batches carry their labels; the first that is there counts."""


@dataclass(frozen=True)
class Batch:
    """One batch, as a model is called with it.

    Attributes:
        args: positional inputs, tensors of shape (batch, ...).
        kwargs: inputs by name, as HF models take them.
        labels: (batch, ...), a tuple of such, or None.
        numbers: (batch,) int64, indices of the items within their data set, the same in every pass; None where they are unknown.
        fields: text and ids, one an item, such as "prompt" and "completion"; the model is called without them.

    >>> Batch((torch.zeros(4, 3),), labels=torch.zeros(4)).size
    4
    """

    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Any = None
    numbers: Tensor | None = None
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Items in the batch."""
        return len(next(item for item in (*self.args, *self.kwargs.values()) if isinstance(item, Tensor)))

    @property
    def device(self) -> torch.device:
        """Where its inputs are."""
        return next(item.device for item in (*self.args, *self.kwargs.values()) if isinstance(item, Tensor))

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def clone(self) -> Batch:
        """A copy whose tensors may be changed in place."""
        return self._map(Tensor.clone)

    def __getitem__(self, items: slice | Tensor) -> Batch:
        """Some of its items: a slice, or their numbers."""
        if isinstance(items, Tensor) and not items.is_floating_point() and items.dtype != torch.bool:
            chosen = self._map(lambda tensor: tensor.index_select(0, items.to(tensor.device)))
        else:
            chosen = self._map(lambda tensor: tensor[items])
        return replace(chosen, fields=_chosen_fields(self.fields, items)) if self.fields else chosen

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def each(item: Any) -> Any:
            if isinstance(item, tuple):
                return tuple(map(each, item))
            return change(item) if isinstance(item, Tensor) else item

        return Batch(each(self.args), {key: each(item) for key, item in self.kwargs.items()}, each(self.labels), each(self.numbers), self.fields)

    def call(self, model: Callable) -> Any:
        """What `model` gives for it; a model in half precision receives floating inputs in its precision.

        >>> Batch((torch.zeros(1, 3),)).call(nn.Linear(3, 2).bfloat16()).dtype
        torch.bfloat16
        """
        half = _half_precision(model)
        given = self if half is None else Batch(self.args, self.kwargs)._map(lambda tensor: tensor.to(half) if tensor.is_floating_point() else tensor)
        return model(*given.args, **given.kwargs)

    def __str__(self) -> str:
        inputs = [_shape(item) for item in self.args] + [f"{key} {_shape(item)}" for key, item in self.kwargs.items()]
        return ", ".join(inputs) + (f"; labels {_shape(self.labels)}" if self.labels is not None else "; no labels")


def _half_precision(model: Any) -> torch.dtype | None:
    """The dtype of a model's first floating weight, if that is float16 or bfloat16."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), None)
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def _chosen_fields(fields: Mapping[str, Sequence[str]], items: slice | Tensor) -> dict[str, Sequence[str]]:
    if isinstance(items, slice):
        return {name: values[items] for name, values in fields.items()}
    numbers = items.nonzero().flatten().tolist() if items.dtype == torch.bool else items.tolist()
    return {name: [values[number] for number in numbers] for name, values in fields.items()}


def _shape(item: Any) -> str:
    if isinstance(item, tuple):
        return f"({', '.join(map(_shape, item))})"
    return f"{str(item.dtype).removeprefix('torch.')} {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__


def as_batch(obj: Any) -> Batch:
    """One batch in any of the forms in which loaders give it.

    ========================  ===========================================================================================
    `x`, `(x,)`               inputs without labels
    `(x, y)`                  inputs and labels; `x` may be a tensor, a tuple of tensors or a dict; `y` may be None
    `(x1, x2, ..., y)`        the last one is the labels; without labels write `((x1, x2), None)`
    `(x, y, paths)`           parts of text beside inputs and labels, such as file names, become the batch's `fields`
    `{"name": x, ...}`        inputs by name; the first of `LABEL_KEYS` that it has is the labels
    ========================  ===========================================================================================

    Arrays and lists of numbers become tensors, float64 becomes float32 (models are float32), integer labels become int64.
    uint8 inputs stay: how images are scaled belongs to the model's training, and the kit does not guess it. Lists of strings
    beside numbers in a dict become the batch's `fields`.

    Raises:
        KdError: it is none of these; or its parts differ in length.

    >>> as_batch(([[1.0, 2.0], [3.0, 4.0]], [0, 1])).labels
    tensor([0, 1])
    >>> sorted(as_batch({"input_ids": torch.ones(2, 3), "labels": torch.ones(2)}).kwargs)
    ['input_ids']
    """
    obj, fields = _without_text(obj)
    inputs, labels = _parted(obj)
    batch = _of_inputs(inputs)
    batch = replace(batch, fields={**batch.fields, **fields}) if fields else batch
    if labels is not None:
        batch = replace(batch, labels=as_labels(labels))
    _check_lengths(batch)
    return batch


def _without_text(obj: Any) -> tuple[Any, dict[str, list[str]]]:
    """A tuple's parts without those of text, such as file names, if inputs and labels remain; and these parts by name."""
    if isinstance(obj, Batch) or not _is_parts(obj):
        return obj, {}
    named = [isinstance(part, list | tuple) and bool(part) and all(isinstance(each, str | PurePath) for each in part) for part in obj]
    if not any(named) or len(obj) - sum(named) < 2:
        return obj, {}
    rest = tuple(part for part, text in zip(obj, named, strict=True) if not text)
    return rest, {f"text{number}": [str(each) for each in part] for number, part in enumerate(obj) if named[number]}


def _parted(obj: Any) -> tuple[Any, Any]:
    """Inputs and labels, if `obj` holds them side by side."""
    if isinstance(obj, Batch) or not _is_parts(obj):
        return obj, None
    *inputs, labels = obj if len(obj) > 1 else (obj[0], None)
    return _stacked_pictures(inputs[0], labels) if len(inputs) == 1 else tuple(inputs), labels


def _is_parts(obj: Any) -> bool:
    """Whether a tuple or list is the parts of a batch and not rows of numbers."""
    return isinstance(obj, list | tuple) and len(obj) > 0 and not isinstance(obj[0], bool | int | float | str) and not _is_rows(obj)


def _is_rows(obj: Any) -> bool:
    return isinstance(obj, list) and all(isinstance(row, list) and row and isinstance(row[0], bool | int | float) for row in obj)


def _of_inputs(inputs: Any) -> Batch:
    if isinstance(inputs, Batch):
        return inputs
    if isinstance(inputs, Mapping):
        key = next((key for key in LABEL_KEYS if key in inputs), None)
        named = {str(name): as_tensor(item, str(name)) for name, item in inputs.items() if name != key and not is_text(item)}
        fields = {str(name): list(item) for name, item in inputs.items() if name != key and isinstance(item, list | tuple) and item and _is_strings(item)}
        return Batch((), named, None if key is None else as_labels(inputs[key]), fields=fields)
    parts = inputs if _is_parts(inputs) else (inputs,)
    return Batch(tuple(as_tensor(part, "the inputs") for part in parts))


def _is_strings(item: Sequence) -> bool:
    return all(isinstance(each, str) for each in item)


def as_labels(item: Any) -> Any:
    """Labels as tensors, integers and booleans as int64; a tuple of labels stays a tuple.

    >>> as_labels([True, False])
    tensor([1, 0])
    """
    if isinstance(item, tuple) and item and not isinstance(item[0], bool | int | float | str | Mapping):
        return tuple(map(as_labels, item))
    if isinstance(item, list | tuple) and item and all(isinstance(each, Mapping) for each in item):
        return true_boxes(item)
    labels = as_tensor(item, "the labels")
    return labels if labels.is_floating_point() else labels.long()


def _stacked_pictures(inputs: Any, labels: Any) -> Any:
    """Pictures of a detection batch, a list with one of each item, as one tensor."""
    listed = isinstance(labels, list | tuple) and bool(labels) and all(isinstance(each, Mapping) for each in labels)
    if not listed or not isinstance(inputs, list | tuple) or len(inputs) != len(labels):
        return inputs
    return as_tensor(list(inputs), "the pictures", "pad or resize them, and their boxes, to one size")


def _check_lengths(batch: Batch) -> None:
    inputs = {f"input {index + 1}": item for index, item in enumerate(batch.args)} | dict(batch.kwargs)
    flat = next((name for name, item in inputs.items() if not item.ndim), None)
    if not inputs or flat is not None:
        raise KdError(
            "a batch without inputs" if not inputs else f"{flat} is a single number, not a batch", "give batches: (x, y) with one entry an item, or dicts of tensors"
        )
    labels = batch.labels if isinstance(batch.labels, tuple) else () if batch.labels is None else (batch.labels,)
    counts = {name: len(item) for name, item in (inputs | dict(batch.fields)).items()}
    counts |= {f"labels{index or ''}": len(item) if item.ndim else 0 for index, item in enumerate(labels)}
    if len(set(counts.values())) > 1:
        raise KdError(
            f"parts of different lengths: {', '.join(f'{name} {count}' for name, count in counts.items())}", "every input and the labels need one entry an item"
        )


def resize(batch: Batch, size: int) -> Batch:
    """A batch of `size` items, made of a batch's items, taken again from the first where there are too few.

    >>> resize(Batch((torch.tensor([1, 2, 3]),)), 5).args
    (tensor([1, 2, 3, 1, 2]),)
    """
    have = batch.size
    chosen = torch.arange(size) % have

    def each(item: Any) -> Any:
        of_items = isinstance(item, torch.Tensor) and item.dim() > 0 and len(item) == have
        return item[chosen.to(item.device)] if of_items else item

    fields = _chosen_fields(batch.fields, chosen) if batch.fields else {}
    return Batch(tree_map(each, batch.args), tree_map(each, dict(batch.kwargs)), tree_map(each, batch.labels), each(batch.numbers), fields)

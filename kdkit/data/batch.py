"""A batch, and the forms in which loaders give one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from torch import Tensor

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
        numbers: (batch,) int64, of the items within their data set, the same in every pass; None where that is not known.

    >>> Batch((torch.zeros(4, 3),), labels=torch.zeros(4)).size
    4
    """

    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Any = None
    numbers: Tensor | None = None

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

    def __getitem__(self, items: slice | Tensor) -> Batch:
        """Some of its items: a slice, or their numbers."""
        if isinstance(items, Tensor) and not items.is_floating_point() and items.dtype != torch.bool:
            return self._map(lambda tensor: tensor.index_select(0, items.to(tensor.device)))
        return self._map(lambda tensor: tensor[items])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        def each(item: Any) -> Any:
            if isinstance(item, tuple):
                return tuple(map(each, item))
            return change(item) if isinstance(item, Tensor) else item

        return Batch(each(self.args), {key: each(item) for key, item in self.kwargs.items()}, each(self.labels), each(self.numbers))

    def call(self, model: Callable) -> Any:
        """What `model` gives for it."""
        return model(*self.args, **self.kwargs)

    def __str__(self) -> str:
        inputs = [_shape(item) for item in self.args] + [f"{key} {_shape(item)}" for key, item in self.kwargs.items()]
        return ", ".join(inputs) + (f"; labels {_shape(self.labels)}" if self.labels is not None else "; no labels")


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
    `{"name": x, ...}`        inputs by name; the first of `LABEL_KEYS` that it has is the labels
    ========================  ===========================================================================================

    Arrays and lists of numbers become tensors, float64 becomes float32 (models are float32), integer labels become int64.
    uint8 inputs stay: how images are scaled belongs to the model's training, and the kit does not guess it. Text is left
    out of dicts that hold numbers too.

    Raises:
        KdError: it is none of these; or its parts differ in length.

    >>> as_batch(([[1.0, 2.0], [3.0, 4.0]], [0, 1])).labels
    tensor([0, 1])
    >>> sorted(as_batch({"input_ids": torch.ones(2, 3), "labels": torch.ones(2)}).kwargs)
    ['input_ids']
    """
    inputs, labels = _parted(obj)
    batch = _of_inputs(inputs)
    if labels is not None:
        batch = replace(batch, labels=as_labels(labels))
    _check_lengths(batch)
    return batch


def _parted(obj: Any) -> tuple[Any, Any]:
    """Inputs and labels, if `obj` holds them side by side."""
    if isinstance(obj, Batch) or not _is_parts(obj):
        return obj, None
    *inputs, labels = obj if len(obj) > 1 else (obj[0], None)
    return inputs[0] if len(inputs) == 1 else tuple(inputs), labels


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
        named = {str(name): as_tensor(item, str(name)) for name, item in inputs.items() if name != key and not _is_text(item)}
        return Batch((), named, None if key is None else as_labels(inputs[key]))
    parts = inputs if _is_parts(inputs) else (inputs,)
    return Batch(tuple(as_tensor(part, "the inputs") for part in parts))


def _is_text(item: Any) -> bool:
    if item is None or isinstance(item, str):
        return True
    if isinstance(item, list | tuple):
        return bool(item) and all(map(_is_text, item))
    return isinstance(item, numpy.ndarray) and (item.dtype.kind in "SU" or (item.dtype.kind == "O" and bool(item.size) and all(map(_is_text, item.flat))))


def as_tensor(item: Any, where: str) -> Tensor:
    """A tensor of what holds numbers; float64 becomes float32.

    Raises:
        KdError: it holds no numbers, or rows of different lengths; `where` begins the message.

    >>> as_tensor(numpy.zeros((2, 3)), "x").dtype
    torch.float32
    """
    if type(item).__module__.partition(".")[0] == "pandas":
        item = item.to_numpy()
    if _is_text(item):
        raise KdError(f"{where}: text, not numbers", "tokenize text, and encode names as numbers, before handing it over")
    if isinstance(item, list | tuple):
        item = _rectangle(item, where)
    if isinstance(item, numpy.ndarray | numpy.generic):
        item = _from_numpy(numpy.asarray(item), where)
    if isinstance(item, bool | int | float):
        item = torch.tensor(item)
    if not isinstance(item, Tensor):
        raise KdError(f"{where}: {type(item).__name__} holds no numbers", "give tensors, arrays or lists of numbers")
    return item.float() if item.dtype == torch.float64 else item


def as_labels(item: Any) -> Any:
    """Labels as tensors, integers and booleans as int64; a tuple of labels stays a tuple.

    >>> as_labels(numpy.array([True, False]))
    tensor([1, 0])
    """
    if isinstance(item, tuple) and item and not isinstance(item[0], bool | int | float | str):
        return tuple(map(as_labels, item))
    labels = as_tensor(item, "the labels")
    return labels if labels.is_floating_point() else labels.long()


def _from_numpy(array: numpy.ndarray, where: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        raise KdError(f"{where}: an array of {array.dtype}, not of numbers", "pad rows to one length, or convert it: array.astype('float32')")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(numpy.int64)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native if native.flags.writeable and min(native.strides, default=0) >= 0 else native.copy())


def _rectangle(rows: Sequence, where: str) -> Tensor | numpy.ndarray:
    if rows and all(isinstance(row, Tensor) for row in rows):
        shapes = sorted({tuple(row.shape) for row in rows})
        if len(shapes) > 1:
            raise KdError(f"{where}: items of different shapes, {shapes[0]} and {shapes[-1]}", "pad them to one length")
        return torch.stack(list(rows))
    try:
        return numpy.array(rows)
    except ValueError as error:
        lengths = sorted({len(row) for row in rows if hasattr(row, "__len__")}) or [0]
        raise KdError(f"{where}: rows of different lengths, {lengths[0]} to {lengths[-1]}", "pad them to one length") from error


def _check_lengths(batch: Batch) -> None:
    inputs = {f"input {index + 1}": item for index, item in enumerate(batch.args)} | dict(batch.kwargs)
    flat = next((name for name, item in inputs.items() if not item.ndim), None)
    if not inputs or flat is not None:
        raise KdError(
            "a batch without inputs" if not inputs else f"{flat} is a single number, not a batch", "give batches: (x, y) with one entry an item, or dicts of tensors"
        )
    labels = batch.labels if isinstance(batch.labels, tuple) else () if batch.labels is None else (batch.labels,)
    counts = {name: len(item) for name, item in inputs.items()} | {f"labels{index or ''}": len(item) if item.ndim else 0 for index, item in enumerate(labels)}
    if len(set(counts.values())) > 1:
        raise KdError(
            f"parts of different lengths: {', '.join(f'{name} {count}' for name, count in counts.items())}", "every input and the labels need one entry an item"
        )

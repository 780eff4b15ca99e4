"""Tensors of whatever holds numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from kdkit.errors import KdError

PICTURES = "make tensors of them, scaled as in the model's training: transform=torchvision.transforms.ToTensor(), or numpy.asarray(image).transpose(2, 0, 1) / 255"
"""A hint for pictures of PIL."""


def as_tensor(item: Any, where: str, remedy: str = "pad them to one length") -> Tensor:
    """A tensor of what holds numbers; float64 becomes float32.

    Args:
        where: begins an error's message.
        remedy: a hint for rows of different lengths.

    Raises:
        KdError: it holds no numbers, or rows of different lengths; `where` begins the message.

    >>> as_tensor(numpy.zeros((2, 3)), "x").dtype
    torch.float32
    """
    if type(item).__module__.partition(".")[0] == "pandas":
        item = item.to_numpy()
    if item is None or (isinstance(item, list | tuple) and item and all(each is None for each in item)):
        raise KdError(f"{where}: None, not numbers", "for inputs without labels give x, or (x, None)")
    if is_text(item):
        raise KdError(f"{where}: text, not numbers", "encode names as numbers; to train on text, pass a list of strings and %kd set --tokenizer {tokenizer}")
    picture = next((each for each in (item if isinstance(item, list | tuple) else [item]) if type(each).__module__.startswith("PIL.")), None)
    if picture is not None:
        raise KdError(f"{where}: {'pictures' if picture is not item else 'a picture'} of PIL, not numbers", PICTURES)
    if isinstance(item, list | tuple):
        item = _rectangle(item, where, remedy)
    if isinstance(item, numpy.ndarray | numpy.generic):
        item = _from_numpy(numpy.asarray(item), where)
    if isinstance(item, bool | int | float):
        item = torch.tensor(item)
    if not isinstance(item, Tensor):
        raise KdError(f"{where}: {type(item).__name__} holds no numbers", "give tensors, arrays or lists of numbers")
    if item.layout != torch.strided:
        raise KdError(f"{where}: a sparse tensor", "kdkit takes dense tensors: x.to_dense()")
    return item.float() if item.dtype == torch.float64 else item


def is_text(item: Any) -> bool:
    """Whether something is text, or holds nothing but text.

    >>> is_text(["a", ["b", None]]), is_text([1])
    (True, False)
    """
    if item is None or isinstance(item, str):
        return True
    if isinstance(item, list | tuple):
        return bool(item) and all(map(is_text, item))
    return isinstance(item, numpy.ndarray) and (item.dtype.kind in "SU" or (item.dtype.kind == "O" and bool(item.size) and all(map(is_text, item.flat))))


def _from_numpy(array: numpy.ndarray, where: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        raise KdError(f"{where}: an array of {array.dtype}, not of numbers", "pad rows to one length, or convert it: array.astype('float32')")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(numpy.int64)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native if native.flags.writeable and min(native.strides, default=0) >= 0 else native.copy())


def _rectangle(rows: Sequence, where: str, remedy: str) -> Tensor | numpy.ndarray:
    if rows and all(isinstance(row, Tensor) for row in rows):
        shapes = sorted({tuple(row.shape) for row in rows})
        if len(shapes) > 1:
            raise KdError(f"{where}: items of different shapes, {shapes[0]} and {shapes[-1]}", remedy)
        return torch.stack(list(rows))
    try:
        return numpy.array(rows)
    except ValueError as error:
        lengths = sorted({len(row) for row in rows if hasattr(row, "__len__")}) or [0]
        raise KdError(f"{where}: rows of different lengths, {lengths[0]} to {lengths[-1]}", remedy) from error

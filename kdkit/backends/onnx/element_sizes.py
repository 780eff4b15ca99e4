"""How many bytes the elements of a tensor of an ONNX type take."""

from __future__ import annotations

import math
from collections.abc import Sequence


def count_bytes(dims: Sequence[int], kind: int) -> int:
    """The bytes of a tensor's elements.

    Args:
        dims: sizes of the axes.
        kind: the type of its elements, a `TensorProto.DataType`.

    Raises:
        ValueError: elements of that type have no fixed size, or an axis is negative.

    >>> from onnx import TensorProto
    >>> count_bytes([2, 3], TensorProto.FLOAT), count_bytes([3], TensorProto.INT4)
    (24, 2)
    """
    if min(dims, default=0) < 0:
        raise ValueError("an axis has a negative size")
    return -(-math.prod(dims) * _bits(kind) // 8)


def _bits(kind: int) -> int:
    from onnx import TensorProto, helper

    if kind not in TensorProto.DataType.values() or kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise ValueError("its elements have no fixed size")
    name = TensorProto.DataType.Name(kind)
    packed = next((bits for mark, bits in (("INT2", 2), ("INT4", 4), ("FLOAT4", 4), ("FLOAT6", 6)) if name.removeprefix("U").startswith(mark)), 0)
    return packed or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize

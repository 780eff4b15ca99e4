"""The bytes of tensors of ONNX types."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdkit.backends.onnx.element_sizes import count_bytes

KINDS = [kind for kind in TensorProto.DataType.values() if kind not in (TensorProto.UNDEFINED, TensorProto.STRING)]


@pytest.mark.parametrize("kind", KINDS, ids=TensorProto.DataType.Name)
def test_the_bytes_are_those_that_onnx_writes(kind: int) -> None:
    values = np.ones(7, helper.tensor_dtype_to_np_dtype(kind))
    assert count_bytes([7], kind) == len(numpy_helper.from_array(values).raw_data)


@pytest.mark.parametrize(("dims", "kind"), [([2], TensorProto.STRING), ([2], 0), ([2], 99), ([-2], TensorProto.FLOAT)])
def test_other_tensors_have_no_size(dims: list[int], kind: int) -> None:
    with pytest.raises(ValueError, match="no fixed size|negative"):
        count_bytes(dims, kind)

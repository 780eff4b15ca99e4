"""The int8 backend."""

import pytest
import torch

from kdkit import KdError
from kdkit.backends.onnxruntime import Int8Backend, OnnxModel, open_session
from tests.fixtures import zoo
from tests.fixtures.onnx_zoo import pair as exported


def test_int8_refuses_float_models_and_says_what_to_do():
    for model in (zoo.mlp(), exported("mlp")[1]):
        assert "%kd quantize" in Int8Backend().refuses(model)
        with pytest.raises(KdError, match="backend int8: it has no 8-bit weights"), Int8Backend().runner(model):
            pass


def test_onnxruntime_writes_nothing_itself_and_its_errors_are_in_plain_words(capfd):
    from onnx import TensorProto, helper

    from kdkit.backends.onnx.signature import Signature

    values = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]), helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 2])]
    table = helper.make_tensor("table", TensorProto.FLOAT, [3, 2], [0.0] * 6)
    graph = helper.make_graph([helper.make_node("Gather", ["table", "ids"], ["rows"])], "graph", values[:1], values[1:], [table])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    with pytest.raises(KdError, match=r"can't run the model on ids \(1,\): an id is larger than the table that it selects from"):
        OnnxModel(content, Signature(("ids",), ("ids",)))(torch.tensor([7]))
    with pytest.raises(KdError, match="can't open the graph: it is not a complete ONNX file"):
        open_session(content[:-20])
    assert capfd.readouterr() == ("", "")

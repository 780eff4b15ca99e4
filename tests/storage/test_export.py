"""Export: what is written is read back and compared before it gets its name."""

import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from kdkit import KdError
from kdkit.backends.onnx.model import OnnxModel
from kdkit.backends.onnx.signature import Signature
from kdkit.data import Batch
from kdkit.storage import export as module
from kdkit.storage.export import export

X = Batch((torch.tensor([[1.0, -2.0]]),))


def graph_of(operator: str) -> OnnxModel:
    """A model of one operator, without the exporter."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node(operator, ["input"], ["output"])], "graph", values[:1], values[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return OnnxModel(made.SerializeToString(), Signature(("input",), ("input",)))


def test_a_file_whose_outputs_differ_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "to_onnx", lambda model, example: graph_of("Abs"))
    (path := tmp_path / "net.onnx").write_bytes(b"before")
    with pytest.raises(KdError, match=r"net\.onnx was not written: in onnxruntime, output differs by 2 of"):
        export(nn.ReLU(), path, X)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("net.onnx", b"before")]


def test_a_file_whose_outputs_are_the_model_s_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "to_onnx", lambda model, example: graph_of("Relu"))
    path = export(nn.ReLU(), tmp_path / "net.onnx", X)
    assert path.read_bytes() == graph_of("Relu").onnx
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


def test_a_graph_is_written_without_data(tmp_path):
    assert export(graph_of("Relu"), tmp_path / "net.onnx", None).read_bytes() == graph_of("Relu").onnx


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    (path := tmp_path / "net.onnx").touch(mode=0o600)
    export(graph_of("Relu"), path, None)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_program_whose_outputs_differ_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read_program", lambda path: nn.Tanh())
    (path := tmp_path / "net.pt2").write_bytes(b"before")
    with pytest.raises(KdError, match=r"net\.pt2 was not written: as a program, "):
        export(nn.ReLU(), path, X)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("net.pt2", b"before")]

"""Runs under a limit end, whatever the graph computes."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdkit import KdError
from kdkit.backends.onnx.model import OnnxModel
from kdkit.backends.onnx.runs import RunTooLarge, limit_runs
from kdkit.backends.onnx.signature import Signature


def model(*nodes: object) -> OnnxModel:
    """y from x, both of one number."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([*nodes], "g", ends[:1], ends[1:], [numpy_helper.from_array(np.array(True), "true"), numpy_helper.from_array(np.array(2**62), "often")])
    return OnnxModel(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString(), Signature(("x",), ("x",)))


def endless() -> OnnxModel:
    kinds = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "on": TensorProto.BOOL}
    values = {name: helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items()}
    values |= {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("v", "w")}
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [values["i"], values["go"], values["v"]],
        [values["on"], values["w"]],
    )
    return model(helper.make_node("Loop", ["often", "true", "x"], ["y"], body=body))


@pytest.mark.slow
def test_a_graph_that_loops_for_ever_is_stopped() -> None:
    began = time.monotonic()
    with pytest.raises(RunTooLarge, match="more than 0.5 s"), limit_runs(0.5):
        endless()(torch.ones(1))
    assert time.monotonic() - began < 5


def test_a_graph_whose_values_become_large_is_stopped_before_they_take_memory() -> None:
    growing = model(
        helper.make_node("Cast", ["x"], ["n"], to=TensorProto.INT64),
        helper.make_node("Expand", ["x", "n"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["y"], keepdims=1),
    )
    with limit_runs(20):
        assert growing(torch.full((1,), 8.0)).tolist() == [64.0]
        with pytest.raises(RunTooLarge, match="more than 1,073,741,824 bytes"):
            growing(torch.full((1,), 2.0**30))


def test_other_errors_stay_and_runs_without_a_limit_too() -> None:
    net = model(helper.make_node("Reshape", ["x", "often"], ["y"]))
    for limit in (contextlib.nullcontext(), limit_runs(5)):
        with limit, pytest.raises(KdError, match="onnxruntime can't"):
            net(torch.ones(1))

"""What a graph computes before its first call is bounded, or onnxruntime does not compute it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdkit import KdError
from kdkit.backends.onnx.constants import FOLDING, check_constants, check_expansion
from kdkit.backends.onnx.model import OnnxModel
from kdkit.backends.onnx.signature import Signature


def integers(*numbers: int) -> TensorProto:
    return numpy_helper.from_array(np.array(numbers, np.int64))


def constant(name: str, *numbers: int) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=integers(*numbers))


def model(*nodes: NodeProto, functions: list[FunctionProto] | None = None) -> ModelProto:
    """y = x + sum of "big", which the nodes make without x."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    tail = [helper.make_node("ReduceSum", ["big"], ["one"], keepdims=0), helper.make_node("Add", ["x", "one"], ["y"])]
    graph = helper.make_graph([*nodes, *tail], "g", ends[:1], ends[1:], [numpy_helper.from_array(np.ones((1, 1), np.float32), "unit")])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions or [])


def filled(*numbers: int) -> list[NodeProto]:
    return [constant("shape", *numbers), helper.make_node("ConstantOfShape", ["shape"], ["big"])]


LARGE: dict[str, Callable[[], list[NodeProto]]] = {
    "ConstantOfShape": lambda: filled(2**20, 2**20),
    "ConstantOfShape of medium size, many times": lambda: [
        constant("shape", 2**24),
        *(helper.make_node("ConstantOfShape", ["shape"], [f"part{number}" if number else "big"]) for number in range(9)),
    ],
    "Expand": lambda: [constant("shape", 2**20, 2**20), helper.make_node("Expand", ["unit", "shape"], ["big"])],
    "Tile": lambda: [constant("times", 2**20, 2**20), helper.make_node("Tile", ["unit", "times"], ["big"])],
    "Range": lambda: [
        *(
            helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, [], [number]))
            for name, number in (("a", 0), ("b", 2**40), ("c", 1))
        ),
        helper.make_node("Range", ["a", "b", "c"], ["range"]),
        helper.make_node("Cast", ["range"], ["big"], to=TensorProto.FLOAT),
    ],
    "Concat, doubled": lambda: [
        *(helper.make_node("Concat", [f"c{number}" if number else "unit"] * 2, [f"c{number + 1}" if number < 39 else "big"], axis=0) for number in range(40)),
    ],
}


@pytest.mark.parametrize("what", LARGE)
def test_constants_much_larger_than_the_file_are_refused(what: str, tmp_path: Path) -> None:
    hostile = model(*LARGE[what]())
    path = tmp_path / "model.onnx"
    path.write_bytes(hostile.SerializeToString())
    began = time.thread_time()
    with pytest.raises(KdError, match=r"model.onnx: its node .* makes constants of more than"):
        OnnxModel.kdkit_load(tmp_path, facts())
    assert time.thread_time() - began < 5


def facts() -> dict[str, object]:
    signature = Signature(("x",), ("x",)).facts() | {"parameters": ["x"], "inputs": ["x"], "unused": []}
    return {"signature": signature, "packed": False, "without": []}


UNKNOWN: dict[str, Callable[[], list[NodeProto]]] = {
    "a shape that is computed": lambda: [
        constant("small", 2**10, 2**10),
        helper.make_node("Mul", ["small", "small"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
    ],
    "a matrix product": lambda: [*filled(2**10, 2**10)[:1], helper.make_node("ConstantOfShape", ["shape"], ["a"]), helper.make_node("MatMul", ["a", "a"], ["big"])],
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_constants_of_unknown_cost_are_not_computed_when_the_graph_opens(what: str, tmp_path: Path) -> None:
    hostile = model(*UNKNOWN[what]())
    assert check_constants(hostile, 1000, "it") == (FOLDING,)
    (tmp_path / "model.onnx").write_bytes(hostile.SerializeToString())
    assert FOLDING in OnnxModel.kdkit_load(tmp_path, facts()).without


def test_small_constants_are_folded_as_before() -> None:
    assert check_constants(model(*filled(16, 16)), 1000, "it") == ()


def test_constants_that_are_text_have_no_size_and_are_not_computed() -> None:
    words = [helper.make_node("Constant", [], ["words"], value_strings=[b"a", b"b"]), helper.make_node("StringNormalizer", ["words"], ["z"])]
    assert check_constants(model(*words), 1000, "it") == (FOLDING,)


def function(name: str, *calls: str) -> FunctionProto:
    inner = [helper.make_node(call, ["a" if not number else f"t{number}"], [f"t{number + 1}"], domain="own") for number, call in enumerate(calls)]
    return helper.make_function(
        "own",
        name,
        ["a"],
        ["b"],
        [*inner, helper.make_node("Identity", [f"t{len(calls)}" if calls else "a"], ["b"])],
        [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )


FUNCTIONS = {
    "expand without end": [function(f"f{number}", *[f"f{number + 1}"] * 8) for number in range(20)] + [function("f20")],
    "call themselves": [function("f0", "f1"), function("f1", "f0")],
    "are nested deeply": [function(f"f{number}", f"f{number + 1}") for number in range(900)] + [function("f900")],
}


@pytest.mark.parametrize("what", FUNCTIONS)
def test_functions_that_expand_without_end_are_refused(what: str) -> None:
    hostile = model(*filled(1), helper.make_node("f0", ["x"], ["z"], domain="own"), functions=FUNCTIONS[what])
    with pytest.raises(KdError, match=r"it: (its functions expand|the function 'f\d+' contains itself)"):
        check_expansion(onnx.load_model_from_string(hostile.SerializeToString()), "it")

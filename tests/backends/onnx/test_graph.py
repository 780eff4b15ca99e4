"""ONNX graphs: names, tied weights and constants."""

import functools

import numpy as np
import pytest

from kdkit.backends.onnx.graph import fix_axes, module_of, numel, rename_tensors, tidy, untie_transposed, weights_of
from kdkit.backends.onnx.model import OnnxModel
from kdkit.measurement.size import count_parameters
from tests.fixtures import zoo
from tests.fixtures.onnx_models import assert_same
from tests.fixtures.onnx_zoo import pair as exported


@pytest.mark.slow
def test_tied_embeddings_are_held_once():
    from onnx import numpy_helper

    model, onnx = exported("tiny_gpt2")
    graph = onnx.graph()
    assert sum(map(numel, weights_of(graph))) == pytest.approx(count_parameters(model), rel=0.05)
    table = model.transformer.wte.weight.detach().numpy()
    held = [numpy_helper.to_array(tensor) for tensor in graph.graph.initializer]
    assert sum(np.array_equal(array, table) or np.array_equal(array, table.T) for array in held) == 1


def test_untying_gives_every_product_a_constant_of_its_own():
    _, onnx = exported("tiny_gpt2")
    graph = onnx.graph()
    untie_transposed(graph.graph)
    apart = OnnxModel(graph.SerializeToString(), onnx.signature)
    held = {tensor.name for tensor in graph.graph.initializer}
    head = next(node for node in graph.graph.node if module_of(node) == "lm_head")
    assert head.input[1] in held
    assert_same(zoo.batch("tiny_gpt2").call(apart), zoo.batch("tiny_gpt2").call(onnx))


@pytest.mark.slow
def test_nodes_are_named_after_their_modules():
    _, onnx = exported("cnn")
    assert [module_of(node) for node in onnx.graph().graph.node if node.op_type == "Conv"] == [
        "stem",
        "blocks.0.conv1",
        "blocks.0.conv2",
        "blocks.1.conv1",
        "blocks.1.conv2",
    ]
    _, bert = exported("tiny_bert")
    assert "bert.encoder.layer.1.intermediate.dense" in {module_of(node) for node in bert.graph().graph.node if node.op_type == "MatMul"}


def test_the_graph_holds_no_stale_shapes_and_no_remarks_of_the_exporter():
    _, onnx = exported("cnn")
    graph = onnx.graph()
    assert not graph.graph.value_info
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    weights = sum(numel(tensor) * 4 for tensor in weights_of(graph))
    assert len(onnx.onnx) < weights * 1.08


def test_tidying_merges_equal_initializers():
    from onnx import TensorProto, helper, numpy_helper

    same = np.arange(6, dtype=np.float32)
    nodes = [helper.make_node("Add", ["x", "a"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])]
    value = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=[6])
    held = [numpy_helper.from_array(array, name) for name, array in (("a", same), ("b", same), ("c", same + 1))]
    model = helper.make_model(helper.make_graph(nodes, "g", [value("x")], [value("z")], held))
    tidy(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["a"]
    assert model.graph.node[1].input[1] == "a"


def test_a_tensor_with_a_wanted_name_gives_way_in_inner_graphs_too():
    from onnx import TensorProto, checker, helper

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])

    branch = helper.make_graph([helper.make_node("Add", ["in", "add"], ["inner"])], "branch", [], [value("inner")])
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    nodes = [helper.make_node("Relu", ["in"], ["add"]), helper.make_node("If", ["flag"], ["out"], then_branch=branch, else_branch=branch)]
    graph = helper.make_graph(nodes, "graph", [value("in")], [value("out")], [flag])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    rename_tensors(model, {"in": "add", "out": "logits"})
    checker.check_model(model)
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("add", "logits")
    assert list(model.graph.node[0].output) == ["add_1"]
    assert list(model.graph.node[1].attribute[0].g.node[0].input) == ["add", "add_1"]


def test_a_fixed_axis_has_one_size_and_the_outputs_that_depend_on_it_have_none():
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length + 1"])]
    model = helper.make_model(helper.make_graph([helper.make_node("Pad", ["x", "pads"], ["y"])], "graph", inputs, outputs))
    fix_axes(model, {"x": {1: 7}})
    sizes = [[dim.dim_value or dim.dim_param for dim in item.type.tensor_type.shape.dim] for item in (*model.graph.input, *model.graph.output)]
    assert sizes == [["batch", 7], ["batch", ""]]

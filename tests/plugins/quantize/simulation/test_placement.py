"""Placement: the calls of a forward that compute the tensors of its graph."""

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import Batch
from kdkit.backends.onnx.export import to_onnx
from kdkit_quantize.qat import _values
from kdkit_quantize.simulation.placement import Call, find_calls, record_calls
from tests.fixtures import zoo
from tests.fixtures.onnx_zoo import exported


@pytest.mark.parametrize("name", ["cnn", "depthwise", "mlp"])
def test_every_layer_and_activation_of_a_graph_is_found(name):
    model, batch = zoo.MODELS[name]().eval(), zoo.batch(name)[:2]
    calls, norms = record_calls(model, batch)
    onnx = exported(name)
    tensors = [node.output[0] for node in onnx.graph().graph.node if node.op_type in ("Conv", "Relu", "Add", "Gemm")]
    found = find_calls(calls, _values(onnx, tensors, batch))
    assert list(found) == tensors
    assert sorted(found.values()) == list(found.values())
    assert len(norms) == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


def test_a_convolution_with_its_norm_folded_in_is_the_call_of_the_norm():
    torch.manual_seed(0)
    net, batch = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval(), Batch((torch.randn(2, 3, 8, 8),))
    net[1].running_mean.normal_()
    onnx = to_onnx(net, batch)
    calls, norms = record_calls(net, batch)
    (node,) = (each for each in onnx.graph().graph.node if each.op_type == "Conv")
    found = find_calls(calls, _values(onnx, [node.output[0]], batch))
    assert [calls[number].function for number in found.values()] == ["batch_norm"]
    assert norms == {"0": net[1]}


def test_tensors_that_no_call_computes_are_left_out():
    assert find_calls([Call("relu", torch.ones(2))], {"other": np.zeros(2), "shape": np.ones((2, 1))}) == {}
    assert find_calls([Call("relu", torch.ones(2)), Call("dropout", torch.ones(2))], {"y": np.ones(2)}) == {"y": 0}


def test_recording_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    record_calls(net, Batch((torch.zeros(1, 2),)))
    assert net.training
    assert all(weight.grad is None for weight in net.parameters())

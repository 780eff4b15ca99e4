"""The models of the zoo in ONNX, exported once for all tests of a process; no test may change them."""

import functools

from torch import nn

from kdkit.backends.onnxruntime import OnnxModel, to_onnx
from tests import zoo


@functools.cache
def pair(name: str) -> tuple[nn.Module, OnnxModel]:
    """A torch model of the zoo and its ONNX form."""
    model = zoo.MODELS[name]()
    return model, to_onnx(model, zoo.batch(name))


def exported(name: str) -> OnnxModel:
    """The ONNX form of a model of the zoo."""
    return pair(name)[1]

"""The torch backends: cpu, cpu-bf16 and cuda."""

import copy

import pytest
import torch
from torch import nn

from kdkit import KdError
from kdkit.backends.torch import TorchBackend
from tests.fixtures import zoo
from tests.fixtures.onnx_models import tensors
from tests.fixtures.onnx_zoo import pair as exported


@pytest.mark.parametrize("name", ["cnn", "tiny_bert"])
def test_bf16_is_close_to_float_and_leaves_the_model_alone(name):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    with TorchBackend("cpu").runner(model) as call:
        reference = call(batch)
    with TorchBackend("cpu-bf16", dtype="bfloat16").runner(model) as call:
        output = call(batch)
    assert type(output) is type(reference)
    got, want = tensors(output)[0], tensors(reference)[0]
    assert got.dtype == torch.float32
    assert nn.functional.cosine_similarity(got.flatten(), want.flatten(), 0) > 0.999
    assert not torch.equal(got, want)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_the_cpu_backend_runs_in_eval_mode_without_gradients_and_puts_the_mode_back():
    model = zoo.mlp().train()
    with TorchBackend("cpu").runner(model) as call:
        first, second = call(zoo.batch("mlp")), call(zoo.batch("mlp"))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert model.training


def test_the_cpu_backend_runs_onnx_models_and_closes_their_session():
    _, onnx = exported("mlp")
    model = copy.deepcopy(onnx)
    with TorchBackend("cpu").runner(model) as call:
        assert torch.equal(call(zoo.batch("mlp")), onnx(*zoo.batch("mlp").args))
    assert model._session is None


@pytest.mark.parametrize("backend", [TorchBackend("cuda", device="cuda"), TorchBackend("cpu-bf16", dtype="bfloat16")])
def test_other_torch_backends_refuse_onnx_models(backend):
    assert "runs on the CPU" in backend.refuses(exported("mlp")[1])


def test_cuda_runs_a_copy_or_says_why_not():
    backend, model = TorchBackend("cuda", device="cuda"), zoo.cnn()
    if torch.cuda.is_available():
        assert backend.unavailable() == ""
        with backend.runner(model) as call:
            torch.testing.assert_close(call(zoo.batch("cnn")), model(*zoo.batch("cnn").args), rtol=1e-2, atol=1e-2)
        assert next(model.parameters()).device.type == "cpu"
    else:
        assert "CUDA" in backend.unavailable()
        with pytest.raises(KdError, match=r"backend cuda: .*CUDA"), backend.runner(model):
            pass

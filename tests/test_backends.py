"""Backends, and models in ONNX: called like the model they came from, with the same figures."""

import copy
import functools
import io
import json
import logging
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import KdError, Trait
from kdkit.backends import kdkit_backends
from kdkit.backends.export import exportable
from kdkit.backends.graph import module_of, numel, tidy, untie_transposed, weights_of
from kdkit.backends.onnxruntime import Int8Backend, OnnxModel, to_onnx
from kdkit.backends.signature import Signature, build_output, describe_output
from kdkit.backends.torch import TorchBackend
from kdkit.counting import count_macs, count_parameters, size_bytes
from kdkit.data import Batch
from kdkit.models import traits_of
from tests import zoo
from tests.onnx_zoo import pair as exported


def tensors(output) -> list[torch.Tensor]:
    return describe_output(output)[1]


def assert_same(output, reference) -> None:
    assert type(output) is type(reference)
    for got, want in zip(tensors(output), tensors(reference), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def without_cache(model: nn.Module):
    return exportable(model, "keep")


# OnnxModel is called like the model


@pytest.mark.parametrize("name", zoo.MODELS)
def test_an_exported_model_gives_what_torch_gives_in_the_same_structure(name):
    model, onnx = exported(name)
    with without_cache(model):
        assert_same(zoo.batch(name).call(onnx), zoo.batch(name).call(model))


@pytest.mark.parametrize("name", zoo.MODELS)
@pytest.mark.parametrize("items", [1, 2, 3, 13])
def test_it_takes_batches_of_any_size(name, items):
    model, onnx = exported(name)
    batch = zoo.batch(name, items=items, seed=items)
    with without_cache(model):
        assert_same(batch.call(onnx), batch.call(model))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama", "tiny_gpt2", "lstm"])
@pytest.mark.parametrize("length", [1, 5, 19])
def test_it_takes_sequences_of_any_length(name, length):
    model, onnx = exported(name)
    ids = torch.randint(3, zoo.VOCABULARY, (2, length), generator=torch.Generator().manual_seed(length))
    batch = Batch((ids,)) if name == "lstm" else Batch(kwargs={"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with without_cache(model):
        assert_same(batch.call(onnx), batch.call(model))


def test_masked_tokens_are_masked_in_the_graph_too():
    model, onnx = exported("tiny_bert")
    batch = zoo.batch("tiny_bert")
    mask = torch.ones_like(batch.kwargs["input_ids"])
    mask[:, 6:] = 0
    masked = Batch(kwargs={"input_ids": batch.kwargs["input_ids"], "attention_mask": mask})
    assert_same(masked.call(onnx), masked.call(model))
    assert not torch.allclose(masked.call(onnx).logits, batch.call(onnx).logits)


def test_it_is_called_by_position_and_by_name_alike():
    model, onnx = exported("tiny_bert")
    ids = zoo.batch("tiny_bert").kwargs["input_ids"]
    assert_same(onnx(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)))
    assert_same(onnx(ids, attention_mask=torch.ones_like(ids)), model(ids))


def test_inputs_that_transformers_fill_in_may_be_left_out_or_given_at_their_default():
    model, onnx = exported("tiny_bert")
    ids = zoo.batch("tiny_bert").kwargs["input_ids"]
    assert_same(onnx(input_ids=ids), model(input_ids=ids))
    assert_same(onnx(input_ids=ids, token_type_ids=torch.zeros_like(ids), labels=None, return_dict=True), model(input_ids=ids))


def test_int32_ids_are_taken_as_int64():
    _, onnx = exported("tiny_bert")
    ids = zoo.batch("tiny_bert").kwargs["input_ids"]
    assert torch.equal(onnx(input_ids=ids.int()).logits, onnx(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((torch.zeros(2, 5),), {}, "shape (2, 5), and the model takes (batch, 16)"),
        ((torch.zeros(2, 4, 4),), {}, "shape (2, 4, 4)"),
        ((torch.zeros(2, 16, dtype=torch.long),), {}, "holds int64, and the model takes float32"),
        ((), {}, "input x is missing"),
        ((torch.zeros(2, 16), torch.zeros(2, 16)), {}, "2 positional inputs"),
        ((torch.zeros(2, 16),), {"x": torch.zeros(2, 16)}, "given twice"),
        ((torch.zeros(2, 16),), {"mask": torch.zeros(2, 16)}, "mask is no input"),
        (("text",), {}, "is a str, not a tensor"),
    ],
)
def test_inputs_that_do_not_fit_are_named(args, kwargs, says):
    _, onnx = exported("mlp")
    with pytest.raises(KdError) as error:
        onnx(*args, **kwargs)
    assert says in str(error.value)


def test_other_token_types_than_the_exported_ones_are_refused():
    _, onnx = exported("tiny_bert")
    ids = zoo.batch("tiny_bert").kwargs["input_ids"]
    with pytest.raises(KdError, match="token_type_ids is no input"):
        onnx(input_ids=ids, token_type_ids=torch.ones_like(ids))


def test_what_the_graph_can_not_run_is_said_with_the_shapes():
    _, onnx = exported("tiny_bert")
    ids = torch.full((2, 5), 10_000)
    with pytest.raises(KdError, match=r"can't run the model on .*input_ids \(2, 5\)"):
        onnx(input_ids=ids)


# OnnxModel among modules


def test_it_is_an_onnx_model_with_float_weights_and_no_torch_parameters():
    _, onnx = exported("cnn")
    assert traits_of(onnx) == {Trait.ONNX, Trait.FLOAT_WEIGHTS}
    assert list(onnx.parameters()) == []


def test_modes_and_the_cpu_do_nothing_and_cuda_is_refused():
    _, onnx = exported("mlp")
    assert onnx.eval().train().to("cpu").to(torch.device("cpu")).eval() is onnx
    with pytest.raises(KdError, match="runs on the CPU"):
        onnx.to("cuda")


def test_a_copy_shares_the_graph_and_opens_its_own_session():
    _, onnx = exported("mlp")
    onnx(*zoo.batch("mlp").args)
    twin = copy.deepcopy(onnx)
    assert twin.onnx is onnx.onnx
    assert twin._session is None
    assert torch.equal(twin(*zoo.batch("mlp").args), onnx(*zoo.batch("mlp").args))


def test_the_session_follows_the_number_of_torch_threads():
    _, onnx = exported("mlp")
    model, before = copy.deepcopy(onnx), torch.get_num_threads()
    session = model.session
    assert model.session is session
    try:
        torch.set_num_threads(before + 1)
        assert model.session is not session
        assert model.session.get_session_options().intra_op_num_threads == before + 1
        assert model.session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    finally:
        torch.set_num_threads(before)


def test_saved_and_loaded_it_gives_bit_for_bit_the_same(tmp_path):
    _, onnx = exported("tiny_bert")
    facts = json.loads(json.dumps(onnx.kdkit_save(tmp_path)))
    loaded = OnnxModel.kdkit_load(tmp_path, facts)
    batch = zoo.batch("tiny_bert")
    assert torch.equal(batch.call(loaded).logits, batch.call(onnx).logits)
    assert loaded.signature == onnx.signature
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}


def test_a_truncated_or_missing_file_is_refused(tmp_path):
    _, onnx = exported("mlp")
    facts = onnx.kdkit_save(tmp_path)
    (tmp_path / "model.onnx").write_bytes(onnx.onnx[: len(onnx.onnx) // 2])
    with pytest.raises(KdError, match="can't open the graph"):
        OnnxModel.kdkit_load(tmp_path, facts)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(KdError, match="is missing"):
        OnnxModel.kdkit_load(tmp_path, facts)
    _ = onnx.kdkit_save(tmp_path)
    with pytest.raises(KdError, match="not whole"):
        OnnxModel.kdkit_load(tmp_path, {"packed": False})


# Counting


@pytest.mark.parametrize("name", zoo.MODELS)
@pytest.mark.parametrize("items", [1, 8])
def test_macs_of_the_graph_are_the_macs_of_the_torch_model(name, items):
    model, onnx = exported(name)
    batch = zoo.batch(name, items=items)
    with exportable(model):
        assert count_macs(onnx, batch) == count_macs(model, batch)


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_parameters_are_counted_in_the_graph(name):
    model, onnx = exported(name)
    assert count_parameters(onnx) == count_parameters(model)


def test_folded_batch_norms_are_no_parameters_of_the_graph():
    model, onnx = exported("cnn")
    norms = sum(weight.numel() for module in model.modules() if isinstance(module, nn.BatchNorm2d) for weight in module.parameters())
    biases = sum(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    assert count_parameters(onnx) == count_parameters(model) - norms + biases


def test_size_is_the_size_of_the_file(tmp_path):
    _, onnx = exported("cnn")
    onnx.kdkit_save(tmp_path)
    assert size_bytes(onnx) == (tmp_path / "model.onnx").stat().st_size


# Export


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


def test_exporting_leaves_the_model_as_it_was():
    model = zoo.tiny_llama().train()
    model.model.layers[0].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config, modes = model.config.to_dict(), [module.training for module in model.modules()]
    attention = model.config._attn_implementation
    flags = [weight.requires_grad for weight in model.parameters()]
    to_onnx(model, zoo.batch("tiny_llama"))
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == attention == "sdpa"
    assert [module.training for module in model.modules()] == modes
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_exporting_says_nothing(capfd, caplog):
    stream = logging.StreamHandler(captured := io.StringIO())
    logging.getLogger().addHandler(stream)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            to_onnx(zoo.mlp(), zoo.batch("mlp"))
    finally:
        logging.getLogger().removeHandler(stream)
    assert capfd.readouterr() == ("", "")
    assert not captured.getvalue()
    assert not [item for item in said if "onnx" in item.filename or "onnx" in str(item.message).lower()]


def test_a_single_item_as_example_gives_a_graph_for_any_batch():
    model = zoo.mlp()
    onnx = to_onnx(model, zoo.batch("mlp", items=1))
    assert_same(zoo.batch("mlp", items=5).call(onnx), zoo.batch("mlp", items=5).call(model))


class Pair(nn.Module):
    """Two inputs by name, one of them unused, a switch, and a nested output."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, left, right=None, unused=None, double: bool = False):
        hidden = self.linear(left) + right
        return {"sum": hidden * (2 if double else 1), "parts": (left * 1.0, [right + 1, None])}


def test_switches_unused_inputs_and_nested_outputs_come_through():
    model, left, right = Pair().eval(), torch.randn(3, 4), torch.randn(3, 4)
    onnx = to_onnx(model, Batch((left,), {"right": right, "unused": left, "double": True}))
    assert onnx.signature.inputs == ("left", "right")
    assert onnx.signature.unused == ("unused",)
    assert_same(onnx(left, right=right, unused=left, double=True), model(left, right=right, unused=left, double=True))
    assert onnx(left, right)["parts"][1][1] is None
    with pytest.raises(KdError, match="double is no input"):
        onnx(left, right, double=3)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(8, -1) * 1.0


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) if x.sum().item() > 0 else self.linear(-x)


class First(nn.Module):
    def forward(self, parts, x):
        return parts[0] + x


class Worded(nn.Module):
    def forward(self, x):
        return {"x": x, "said": "yes"}


class Noisy(nn.Module):
    """Not the same from call to call."""

    def forward(self, x):
        return x + torch.randn(x.shape[-1])


@pytest.mark.parametrize(
    ("model", "batch", "says"),
    [
        (Branching(), Batch((torch.randn(8, 4),)), "can't be exported to ONNX"),
        (Noisy(), Batch((torch.randn(8, 4),)), "is not the model"),
        (FixedBatch(), Batch((torch.randn(8, 4),)), "runs on 8 items and not on 3"),
        (nn.Linear(5, 5), Batch((torch.randn(8, 4),)), "can't be called with the example batch"),
        (First(), Batch(([torch.zeros(4, 2)], torch.zeros(4, 2))), "input parts of First is a list"),
        (Worded(), Batch((torch.randn(8, 4),)), "output holds a str"),
    ],
)
def test_what_can_not_be_exported_is_said_with_its_reason(model, batch, says):
    with pytest.raises(KdError) as error:
        to_onnx(model, batch)
    assert says in str(error.value)


def test_more_than_two_gigabytes_are_refused_at_once():
    with torch.device("meta"):
        model = nn.Linear(32_768, 32_768)
    with pytest.raises(KdError, match="2 GB at most"):
        to_onnx(model, Batch((torch.zeros(2, 32_768),)))


def test_half_precision_is_exported_in_float():
    model = zoo.mlp().bfloat16()
    onnx = to_onnx(model, zoo.batch("mlp"))
    assert onnx(*zoo.batch("mlp").args).dtype == torch.float32
    assert next(model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("output", [torch.ones(2), (torch.ones(1), None), [torch.ones(1), {"a": torch.zeros(2)}], {"x": (torch.ones(1),)}])
def test_an_output_is_built_again_from_its_description(output):
    tree, leaves = describe_output(output)
    assert str(build_output(json.loads(json.dumps(tree)), leaves)) == str(output)


def test_a_signature_survives_json():
    signature = Signature(("a", "b"), ("a",), ("b",), {"flag": True}, {"tuple": [0, None]})
    assert Signature.read(json.loads(json.dumps(signature.facts()))) == signature


# Backends


def test_four_backends_are_offered():
    assert [backend.name for backend in kdkit_backends()] == ["cpu", "cpu-bf16", "cuda", "int8"]


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


def test_int8_refuses_float_models_and_says_what_to_do():
    for model in (zoo.mlp(), exported("mlp")[1]):
        assert "%kd quantize" in Int8Backend().refuses(model)
        with pytest.raises(KdError, match="backend int8: it holds no 8-bit weights"), Int8Backend().runner(model):
            pass


def test_importing_the_backends_imports_neither_onnx_nor_onnxruntime():
    import subprocess

    code = "import sys, kdkit.backends.onnxruntime, kdkit.backends.torch; print(sorted({'onnx', 'onnxruntime', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

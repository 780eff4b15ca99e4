"""ONNX models: called, copied, saved and counted like the exported model."""

import copy
import json

import pytest
import torch
from torch import nn

from kdkit import KdError, Trait
from kdkit.backends.onnx.model import OnnxModel
from kdkit.backends.tracing import exportable
from kdkit.data import Batch
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.traits import traits_of
from tests.fixtures import zoo
from tests.fixtures.onnx_models import assert_same
from tests.fixtures.onnx_zoo import pair as exported

pytestmark = pytest.mark.slow


def without_cache(model: nn.Module):
    return exportable(model, "keep")


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
        ((torch.zeros(2, 5),), {}, "shape (2, 5), and the model expects (batch, 16)"),
        ((torch.zeros(2, 4, 4),), {}, "shape (2, 4, 4)"),
        ((torch.zeros(2, 16, dtype=torch.long),), {}, "holds int64, and the model expects float32"),
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


def test_what_the_graph_can_not_run_is_reported_with_the_shapes():
    _, onnx = exported("tiny_bert")
    ids = torch.full((2, 5), 10_000)
    with pytest.raises(KdError, match=r"can't run the model on .*input_ids \(2, 5\)"):
        onnx(input_ids=ids)


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
    with pytest.raises(KdError, match="signature is missing"):
        OnnxModel.kdkit_load(tmp_path, {"packed": False})


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

"""A structure is data: whatever was cut, split, adapted, tied or cast comes back bit by bit on a fresh instance."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.storage import folder
from kdkit.storage.rebuild import empty_copy, load_tensors, rebuild
from kdkit.storage.structure import describe, difference, tensors
from kdkit.storage.transformers_config import sync_config
from tests.fixtures.restructuring import adapted, drop_head, factorised, keep_inputs, keep_outputs, keep_statistics, narrow_block, narrow_mlp, output
from tests.fixtures.zoo import MODELS, Cnn, Mlp, batch, cnn, depthwise, lstm, mlp, tiny_bert, tiny_gpt2, tiny_llama


def as_json(manifest: dict) -> dict:
    return json.loads(json.dumps(manifest, allow_nan=False))


def restored(model: nn.Module, skeleton: nn.Module) -> nn.Module:
    return load_tensors(rebuild(skeleton, as_json(describe(model))), {name: tensor.detach().clone() for name, tensor in tensors(model).items()})


def assert_restored(model: nn.Module, skeleton: nn.Module, inputs: Batch) -> nn.Module:
    again = restored(model, skeleton)
    assert difference(as_json(describe(model)), as_json(describe(again))) == {"modules": {}, "removed": []}
    assert torch.equal(output(model, inputs), output(again, inputs))
    return again


@pytest.mark.parametrize("name", MODELS)
def test_an_unchanged_model_is_described_alike_each_time_and_comes_back_bit_by_bit(name):
    assert describe(MODELS[name]()) == describe(MODELS[name]())
    assert_restored(MODELS[name](), MODELS[name](), batch(name))


def test_the_manifest_holds_no_weights():
    small, large = (len(json.dumps(describe(Mlp(hidden=hidden)))) for hidden in (8, 800))
    assert large - small < 40


def test_channels_cut_by_hand_come_back_on_a_full_skeleton():
    model, kept = cnn(), torch.tensor([0, 3, 5, 15])
    for block in model.blocks:
        narrow_block(block, kept)
    again = assert_restored(model, cnn(), batch("cnn"))
    assert again.blocks[0].conv1.weight.shape == (4, 16, 3, 3)
    assert again.blocks[0].bn1.num_features == 4


def test_a_cut_depthwise_convolution_comes_back_with_its_groups():
    model, kept = depthwise(), torch.arange(0, 32, 2)
    keep_outputs(model.expand[0], kept)
    keep_statistics(model.expand[1], kept)
    keep_outputs(model.depthwise[0], kept)
    model.depthwise[0].groups = model.depthwise[0].in_channels = 16
    keep_statistics(model.depthwise[1], kept)
    keep_inputs(model.project[0], kept)
    assert assert_restored(model, depthwise(), batch("depthwise")).depthwise[0].groups == 16


def test_cut_attention_heads_come_back():
    model = tiny_bert()
    drop_head(model)
    assert assert_restored(model, tiny_bert(), batch("tiny_bert")).bert.encoder.layer[1].attention.self.num_attention_heads == 3


def test_a_linear_split_in_two_by_svd_comes_back_as_a_sequential():
    model = mlp()
    model.second = factorised(model.second, 5)
    again = assert_restored(model, mlp(), batch("mlp"))
    assert [tuple(layer.weight.shape) for layer in again.second] == [(5, 32), (32, 5)]


@pytest.mark.parametrize(("make", "name"), [(lambda: cnn(), "blocks"), (lambda: tiny_llama(), "model.layers"), (lambda: tiny_gpt2(), "transformer.h")])
def test_a_removed_layer_stays_removed_and_its_neighbour_keeps_its_own_weights(make, name):
    model = make()
    stack = model.get_submodule(name)
    del stack[0]
    assert len(assert_restored(model, make(), batch(model)).get_submodule(name)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("name", "targets"), [("mlp", ("first", "head")), ("cnn", ("conv1",)), ("tiny_bert", ("query", "value")), ("tiny_llama", ("q_proj",))])
def test_adapters_that_peft_attached_come_back(name, targets, dora):
    assert_restored(adapted(MODELS[name](), *targets, dora=dora), MODELS[name](), batch(name))


def test_a_wrapper_around_the_original_comes_back_around_a_skeleton_of_the_original():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_bert(), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)).eval()
    again = assert_restored(model, tiny_bert(), batch("tiny_bert"))
    assert again.peft_config["default"].r == 2


def test_tied_embeddings_stay_one_parameter():
    again = assert_restored(tiny_gpt2(), tiny_gpt2(), batch("tiny_gpt2"))
    assert again.lm_head.weight is again.transformer.wte.weight


def test_embeddings_untied_by_a_stage_stay_two_parameters():
    model = tiny_gpt2()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 2)
    again = assert_restored(model, tiny_gpt2(), batch("tiny_gpt2"))
    assert again.lm_head.weight is not again.transformer.wte.weight


def test_two_parameters_on_one_memory_stay_on_one_memory():
    model = Mlp(16, 16).eval()
    model.second.weight.data = model.first.weight.data
    again = assert_restored(model, Mlp(16, 16), batch("mlp"))
    assert "second.weight" not in tensors(model)
    assert again.second.weight.data_ptr() == again.first.weight.data_ptr()


def test_a_module_used_twice_is_built_once():
    model = cnn()
    model.blocks[1] = model.blocks[0]
    again = assert_restored(model, cnn(), batch("cnn"))
    assert again.blocks[1] is again.blocks[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_model_keeps_its_dtype_and_its_float_buffers(dtype):
    again = assert_restored(tiny_llama().to(dtype), tiny_llama(), batch("tiny_llama"))
    assert again.model.layers[0].mlp.up_proj.weight.dtype == dtype


def test_an_lstm_reads_the_weights_it_was_given():
    model = lstm()
    model.lstm = nn.LSTM(12, 7, num_layers=1, batch_first=True, bidirectional=True)
    model.head = nn.Linear(14, 4)
    again = assert_restored(model, lstm(), batch("lstm"))
    assert all(mine is flat for mine, flat in zip(again.lstm._parameters.values(), again.lstm._flat_weights, strict=True))


def test_training_flags_come_back_one_by_one():
    model = cnn().eval()
    model.blocks[0].bn1.train()
    again = restored(model, cnn().train())
    assert [name for name, module in again.named_modules() if module.training] == ["blocks.0.bn1"]


def test_frozen_parameters_stay_frozen():
    model = mlp()
    model.first.requires_grad_(False)
    assert [name for name, weight in restored(model, mlp()).named_parameters() if not weight.requires_grad] == ["first.weight", "first.bias"]


def test_channels_last_weights_keep_their_layout():
    model = cnn().to(memory_format=torch.channels_last)
    again = assert_restored(model, cnn(), batch("cnn"))
    assert again.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_buffers_keep_values_and_persistence():
    model = mlp()
    model.register_buffer("scale", torch.tensor([2, 3], dtype=torch.int8))
    model.register_buffer("cache", torch.zeros(0, 3), persistent=False)
    model.register_buffer("nothing", None)
    again = assert_restored(model, mlp(), batch("mlp"))
    assert again.scale.tolist() == [2, 3]
    assert again.cache.shape == (0, 3)
    assert again.nothing is None
    assert list(again.state_dict())[0:1] == ["scale"]
    assert "cache" not in again.state_dict()


def test_masks_of_torch_prune_come_back_with_the_hook_that_applies_them():
    model = mlp()
    prune.l1_unstructured(model.first, "weight", 0.5)
    again = assert_restored(model, mlp(), batch("mlp"))
    prune.remove(again.first, "weight")
    assert int((again.first.weight == 0).sum()) == again.first.weight.numel() // 2


def test_a_masked_skeleton_loses_its_masks_where_the_saved_model_has_none():
    skeleton = mlp()
    prune.l1_unstructured(skeleton.first, "weight", 0.5)
    again = assert_restored(mlp(), skeleton, batch("mlp"))
    assert isinstance(again.first.weight, nn.Parameter)


def test_attributes_of_every_plain_kind_come_back_as_they_were():
    model = mlp()
    model.facts = {"a": (1, [2.5, None]), 3: {"x", "y"}, "size": torch.Size([2]), "dtype": torch.int8, "device": torch.device("cpu"), "inf": float("-inf"), "$": 1}
    model.offset = torch.arange(3)
    model.layers = [model.first, model.head]
    model.norm = nn.LayerNorm
    model.act = torch.nn.functional.gelu
    again = restored(model, mlp())
    assert again.facts == model.facts
    assert [type(value) for value in again.facts.values()] == [type(value) for value in model.facts.values()]
    assert torch.equal(again.offset, model.offset)
    assert again.layers[1] is again.head
    assert (again.norm, again.act) == (model.norm, model.act)


def test_a_config_stays_one_object_for_all_its_modules():
    model = tiny_llama()
    model.config.rms_norm_eps = 0.25
    again = restored(model, tiny_llama())
    assert again.config.rms_norm_eps == 0.25
    assert again.model.layers[1].self_attn.config is again.config


def test_a_model_called_for_hidden_states_comes_back_able_to_give_them():
    model, inputs = tiny_bert(), batch("tiny_bert")
    expected = inputs.call(lambda **given: model(**given, output_hidden_states=True)).hidden_states
    again = restored(model, tiny_bert())
    given = inputs.call(lambda **given: again(**given, output_hidden_states=True)).hidden_states
    assert len(given) == 3
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(given, expected, strict=True))


def test_a_hollow_copy_has_the_structure_and_memory_of_its_own():
    model, before = tiny_gpt2(), tiny_gpt2()
    copied = empty_copy(model)
    assert describe(copied) == describe(model)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.zero_()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(model.parameters(), before.parameters(), strict=True))


def test_difference_names_what_is_new_what_changed_and_what_is_gone():
    model, before = cnn(), describe(cnn())
    model.pool = nn.Identity()
    model.extra = nn.ReLU()
    del model.blocks[1]
    changed = difference(before, describe(model))
    assert set(changed["modules"]) == {"", "pool", "extra", "blocks"}
    assert set(changed["removed"]) == {f"blocks.1{part}" for part in ("", ".conv1", ".bn1", ".conv2", ".bn2")}


class Inner(nn.Module):
    """A class that no skeleton of the zoo holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_class_that_nobody_may_name_is_refused_with_its_place():
    model = mlp()
    model.dropout = Inner()
    with pytest.raises(KdError, match=r"does not fit the skeleton .*dropout is a .*Inner") as caught:
        rebuild(mlp(), describe(model))
    assert any("skeleton" in hint for hint in caught.value.hints)


def test_another_model_is_no_skeleton():
    with pytest.raises(KdError, match=r"tests.fixtures.zoo:Mlp: the model is a tests.fixtures.zoo:Cnn"):
        rebuild(mlp(), describe(cnn()))


@pytest.mark.parametrize("path", ["os:system", "torch.serialization:os._wrap_close", "torch.hub:load", "subprocess:Popen", "torch.optim.adam:Adam"])
def test_a_manifest_can_name_nothing_but_modules_of_trusted_packages(path):
    manifest = as_json(describe(mlp()))
    manifest["modules"]["dropout"]["class"] = path
    with pytest.raises(KdError, match="does not fit"):
        rebuild(mlp(), manifest)


@pytest.mark.parametrize("code", [{"home": "os", "name": "system"}, {"home": "torch.hub", "name": "load"}])
def test_a_manifest_can_name_no_functions_but_torchs_own(code):
    manifest = as_json(describe(mlp()))
    manifest["modules"][""]["attributes"]["act"] = {"$": "function", **code}
    with pytest.raises(KdError, match=r"lacks values that can't be restored from data: :act"):
        rebuild(mlp(), manifest)


def test_a_lambda_is_taken_from_the_skeleton_and_missed_where_it_has_none():
    def with_lambda() -> nn.Module:
        model = mlp()
        model.act = lambda x: x
        return model

    model = with_lambda()
    assert restored(model, with_lambda()).act(3) == 3
    with pytest.raises(KdError, match="act is a function"):
        rebuild(mlp(), describe(model))


def test_a_lost_hook_is_reported():
    model = mlp()
    model.first.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="first:_forward_hooks"):
        rebuild(mlp(), describe(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rebuild(copy.deepcopy(model), describe(model))


def test_a_class_of_a_notebook_is_found_under_another_module_by_its_name():
    manifest = as_json(describe(mlp()))
    manifest["modules"][""]["class"] = "__main__:Mlp"
    assert type(rebuild(mlp(), manifest)) is Mlp


def test_weights_that_do_not_fit_are_named():
    values = {**tensors(mlp()), "third.weight": torch.zeros(1)}
    del values["first.bias"]
    values["head.bias"] = torch.zeros(5)
    with pytest.raises(
        KdError, match=r"first.bias is missing; third.weight belongs to no module; head.bias is torch.float32 \(5,\), its module expects torch.float32 \(4,\)"
    ):
        load_tensors(mlp(), values)


Edit = Callable[[nn.Module, int], None]


def _tag(model: nn.Module, number: int) -> None:
    model.tag = {"number": number, 1: (number / 7,)}


def _freeze(model: nn.Module, number: int) -> None:
    weights = [*model.parameters()]
    weights[number % len(weights)].requires_grad_(False)


def _train(model: nn.Module, number: int) -> None:
    modules = [module for module in model.modules() if not isinstance(module, nn.Dropout | nn.BatchNorm2d)]
    modules[number % len(modules)].training = True


def _split_head(model: nn.Module, number: int) -> None:
    if isinstance(model.head, nn.Linear):
        model.head = factorised(model.head, 1 + number % 4)


def _wrap_head(model: nn.Module, number: int) -> None:
    model.head = nn.Sequential(nn.Identity(), nn.ModuleDict({"unused": nn.ReLU()}).unused, model.head)


def _narrow(model: nn.Module, number: int) -> None:
    if isinstance(model, Mlp):
        narrow_mlp(model, torch.randperm(model.first.out_features)[: 1 + number % model.first.out_features])
    elif len(model.blocks):
        block = model.blocks[number % len(model.blocks)]
        narrow_block(block, torch.randperm(block.conv1.out_channels)[: 1 + number % block.conv1.out_channels])


def _remove(model: nn.Module, number: int) -> None:
    if isinstance(model, Cnn) and len(model.blocks):
        del model.blocks[number % len(model.blocks)]
    elif isinstance(model, Mlp):
        model.dropout = nn.Identity()


def _share(model: nn.Module, number: int) -> None:
    if isinstance(model, Cnn) and len(model.blocks):
        model.blocks.append(model.blocks[number % len(model.blocks)])
    elif isinstance(model, Mlp):
        model.again = model.second


def _buffer(model: nn.Module, number: int) -> None:
    model.register_buffer("seen", torch.full((number % 3,), number), persistent=bool(number % 2))


EDITS: list[Edit] = [_tag, _freeze, _train, _split_head, _wrap_head, _narrow, _remove, _share, _buffer]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([mlp, cnn]), st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 1000)), max_size=8))
def test_whatever_is_done_to_a_structure_it_comes_back(make, edits):
    model = make()
    torch.manual_seed(len(edits))
    for edit, number in edits:
        edit(model, number)
    assert_restored(model, make(), batch(make()))


def set_width(model: nn.Module, *widths: int) -> None:
    for layer, width in zip(model.bert.encoder.layer, widths, strict=True):
        keep_outputs(layer.intermediate.dense, torch.arange(width))
        keep_inputs(layer.output.dense, torch.arange(width))


def reloaded(model: nn.Module, folder) -> nn.Module:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def test_a_uniformly_narrowed_bert_loads_with_from_pretrained(tmp_path):
    model = tiny_bert()
    set_width(model, 48, 48)
    assert sync_config(model) == {"intermediate_size": 48}
    assert torch.equal(output(reloaded(model, tmp_path), batch(model)), output(model, batch(model)))


def test_a_llama_with_fewer_heads_and_layers_loads_with_from_pretrained(tmp_path):
    model = tiny_llama()
    del model.model.layers[0]
    attention = model.model.layers[0].self_attn
    for projection, size in ((attention.q_proj, 16), (attention.k_proj, 8), (attention.v_proj, 8)):
        keep_outputs(projection, torch.arange(size))
    keep_inputs(attention.o_proj, torch.arange(16))
    assert sync_config(model) == {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    assert attention.layer_idx == 0
    assert torch.equal(output(reloaded(model, tmp_path), batch(model)), output(model, batch(model)))


def test_a_config_that_can_not_tell_the_sizes_is_left_alone():
    uneven, headless = tiny_bert(), tiny_bert()
    set_width(uneven, 48, 40)
    drop_head(headless)
    for model in (uneven, headless, tiny_bert(), mlp()):
        before = str(getattr(model, "config", ""))
        assert sync_config(model) == {}
        assert str(getattr(model, "config", "")) == before


@pytest.mark.parametrize("column", [lambda: torch.randn(100, 64)[:, 0], lambda: torch.randn(4, 64)[:, :1]])
def test_a_column_of_a_larger_tensor_is_saved_and_loaded(column, tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("column", column())
    folder.save(tmp_path / "kept", model, None, {})
    again, _ = folder.load(tmp_path / "kept")
    assert torch.equal(again.column, model.column)


def test_a_config_with_an_infinite_number_is_saved_and_loaded(tmp_path):
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_heads=4, head_dim=8, state_size=4, n_groups=1, expand=2)
    model = Mamba2ForCausalLM(config).eval()
    folder.save(tmp_path / "kept", model, None, {})
    again, _ = folder.load(tmp_path / "kept")
    assert again.config.time_step_limit == config.time_step_limit
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))

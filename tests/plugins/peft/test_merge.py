"""peft merge: the plain model again, with what the adapters learned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models.traits import Trait
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.validation import validate_stage
from kdkit.storage.structure import describe
from kdkit.tasks import Classification
from kdkit_peft.lora import Lora
from kdkit_peft.merge import Merge
from tests.fixtures import zoo


def context(batch: Batch) -> Context:
    return Context(task=Classification(), objects={"example": adopt_data([batch])})


def adapted(model: nn.Module, batch: Batch, **options) -> nn.Module:
    """With adapters whose B is not zero, as after training."""
    torch.manual_seed(0)
    made = Lora(train=False, **options).apply(copy.deepcopy(model), context(batch))
    for name, weight in made.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name or "magnitude" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    return made


def merge(model: nn.Module, batch: Batch) -> tuple[nn.Module, list[str]]:
    about = context(batch)
    return Merge().apply(copy.deepcopy(model), about), about.notes


def output(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        given = batch.call(model)
    return given if isinstance(given, torch.Tensor) else given.logits


def test_the_stage_is_valid_and_the_kit_may_insert_it():
    assert list(validate_stage(Merge)) == []
    assert Merge.bridge
    assert Trait.ADAPTERS_ATTACHED in set(Merge.removes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "tiny_bert", "tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True, "rank": 3, "dropout": 0.5}])
def test_merged_the_model_gives_the_same_and_is_the_plain_model_again(name, options):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    with_adapters = adapted(model, batch, **options)
    merged, notes = merge(with_adapters, batch)
    moved = (output(with_adapters, batch) - output(model, batch)).abs().max()
    assert moved > 1e-2
    torch.testing.assert_close(output(merged, batch), output(with_adapters, batch), atol=1e-5, rtol=1e-5)
    assert describe(merged) == describe(model)
    assert notes[0].startswith("merged ")


def test_an_embedding_and_a_head_merge_too():
    model, batch = zoo.tiny_llama(), zoo.batch("tiny_llama")
    with_adapters = adapted(model, batch, targets=("embed_tokens", "lm_head"))
    merged, _ = merge(with_adapters, batch)
    torch.testing.assert_close(output(merged, batch), output(with_adapters, batch), atol=1e-5, rtol=1e-5)
    assert describe(merged) == describe(model)


def test_the_merged_weight_is_the_formula_by_hand():
    model, batch = zoo.mlp(), zoo.batch("mlp")
    with_adapters = adapted(model, batch, rank=4, alpha=6.0)
    layer = with_adapters.first
    by_hand = model.first.weight + 6 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merge(with_adapters, batch)[0].first.weight, by_hand)


def test_weights_frozen_before_the_adapters_are_frozen_after_and_no_others():
    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    model.bert.embeddings.requires_grad_(False)
    merged, _ = merge(adapted(model, batch), batch)
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert {name: weight.requires_grad for name, weight in merged.named_parameters()} == flags
    assert describe(merged) == describe(model)


def test_a_model_without_adapters_is_refused():
    with pytest.raises(KdError, match="the model has no adapters"):
        merge(zoo.mlp(), zoo.batch("mlp"))


def test_a_peft_model_of_the_users_own_becomes_its_base_model():
    from peft import IA3Config, get_peft_model

    model, batch = zoo.tiny_bert(), zoo.batch("tiny_bert")
    wrapped = get_peft_model(copy.deepcopy(model), IA3Config(task_type="SEQ_CLS", target_modules=["query", "dense"], feedforward_modules=["dense"])).eval()
    for name, weight in wrapped.named_parameters():
        if "ia3" in name:
            weight.data += 0.2
    merged, _ = merge(wrapped, batch)
    assert type(merged) is type(model)
    assert describe(merged) == describe(model)
    torch.testing.assert_close(output(merged, batch), output(wrapped, batch), atol=1e-5, rtol=1e-4)


def test_disabled_adapters_are_taken_off_and_not_merged():
    model, batch = zoo.mlp(), zoo.batch("mlp")
    with_adapters = adapted(model, batch)
    for module in with_adapters.modules():
        if hasattr(module, "enable_adapters"):
            module.enable_adapters(False)
    merged, _ = merge(with_adapters, batch)
    assert torch.equal(merged.first.weight, model.first.weight)


def test_what_can_not_be_merged_is_refused_by_name():
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(zoo.tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, tokenizer_name_or_path=""))
    with pytest.raises(KdError, match="PROMPT_TUNING can't be merged"):
        merge(wrapped, zoo.batch("tiny_llama"))


def test_adapters_that_are_not_finite_are_refused_by_the_name_of_their_layer():
    model, batch = zoo.mlp(), zoo.batch("mlp")
    broken = adapted(model, batch)
    broken.second.lora_B["default"].weight.data.fill_(float("nan"))
    with pytest.raises(KdError, match="at second can't be merged"):
        merge(broken, batch)

"""prune fold: masks of any origin become zeros of ordinary parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from kdkit import Context
from kdkit.errors import KdError
from kdkit.models import Trait, private_copy, traits_of
from kdkit.stages.validation import validate_stage
from kdkit.storage.structure import describe
from kdkit.tasks import Classification
from kdkit_peft.low_rank import LowRank
from kdkit_prune.fold import Fold
from kdkit_prune.masks import masked_tensors
from kdkit_prune.weights import Weights
from tests.fixtures import zoo


def fold(model: nn.Module) -> nn.Module:
    return Fold().apply(private_copy(model), Context(Classification()))


def masked(name: str, **options) -> nn.Module:
    return Weights(**options).apply(zoo.MODELS[name](), Context(Classification()))


def test_the_stage_is_valid_and_the_kit_may_insert_it():
    assert list(validate_stage(Fold)) == []
    assert Fold.bridge
    assert Fold.keeps_values


@pytest.mark.parametrize("name", ["mlp", "cnn", "tiny_bert", "tiny_gpt2"])
def test_folded_the_model_has_its_structure_again_and_gives_the_same(name):
    model, batch = masked(name), zoo.batch(name)
    folded = fold(model)
    assert describe(folded) == describe(zoo.MODELS[name]())
    assert Trait.MASKS_PENDING not in traits_of(folded)
    weights = dict(folded.named_parameters())
    assert all(torch.equal(weights[f"{each.layer}.weight"], each.module.weight) for each in masked_tensors(model))
    with torch.no_grad():
        one, other = batch.call(folded), batch.call(model)
    assert torch.equal(getattr(one, "logits", one), getattr(other, "logits", other))


def test_tied_weights_are_tied_again():
    model = zoo.tiny_gpt2()
    made = Weights(layers=("lm_head",)).apply(model, Context(Classification()))
    folded = fold(made)
    assert folded.lm_head.weight is folded.transformer.wte.weight
    assert float((folded.lm_head.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_frozen_weights_stay_frozen():
    model = zoo.mlp()
    model.first.requires_grad_(False)
    folded = fold(Weights().apply(model, Context(Classification())))
    assert [name for name, weight in folded.named_parameters() if not weight.requires_grad] == ["first.weight", "first.bias"]


def test_masks_of_torch_fold_too():
    model = nn.Sequential(torch_prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5), torch_prune.l1_unstructured(nn.Linear(4, 4), "bias", 0.5))
    x = torch.randn(3, 4)
    expected = model(x)
    folded = fold(model)
    assert sorted(folded.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert int((folded[0].weight == 0).sum()) == 8
    torch.testing.assert_close(folded(x), expected)


def test_masks_of_torch_ao_fold_too():
    from torch.ao.pruning import WeightNormSparsifier

    model = nn.Sequential(nn.Linear(8, 8))
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1))
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    assert Trait.MASKS_PENDING in traits_of(model)
    expected = model(torch.ones(1, 8))
    folded = fold(model)
    assert not parametrize.is_parametrized(folded[0])
    torch.testing.assert_close(folded(torch.ones(1, 8)), expected)


def test_a_mask_under_an_adapter_is_refused_by_the_name_of_its_layer_and_nothing_changes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    made = Weights().apply(model, Context(Classification()))
    parametrize.register_parametrization(made[1], "weight", LowRank(made[1].weight, {"r": 1, "lora_alpha": 1.0}))
    with pytest.raises(KdError, match="LowRank computes weight of 1 too"):
        Fold().apply(made, Context(Classification()))
    assert len(masked_tensors(made)) == 2


def test_a_model_without_masks_is_refused():
    with pytest.raises(KdError, match="the model has no masks"):
        fold(zoo.mlp())

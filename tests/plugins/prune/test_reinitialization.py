"""--reinit: a pruned structure with new random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit_prune.channels import Channels
from kdkit_prune.layers import Layers
from kdkit_prune.masks import mask_of
from kdkit_prune.reinitialization import reinitialize
from kdkit_prune.weights import Weights
from tests.fixtures import zoo


def context(name: str, seed: int = 7) -> Context:
    return Context(Classification(), objects={"calibration": adopt_data([zoo.batch(name)])}, seed=seed)


@pytest.mark.parametrize("name", ["mlp", "cnn", "depthwise", "lstm", "tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_every_matrix_is_new_and_of_the_size_of_its_class(name):
    net = zoo.MODELS[name]()
    fresh = private_copy(net)
    reinitialize(fresh, seed=1)
    for key, weight in net.named_parameters():
        if weight.dim() > 1:
            assert not torch.equal(fresh.get_parameter(key), weight)
            assert 0.001 < float(fresh.get_parameter(key).std()) < 2


def test_the_seed_decides_and_the_random_state_stays():
    one, same, other = zoo.mlp(), zoo.mlp(), zoo.mlp()
    state = torch.random.get_rng_state()
    for net, seed in ((one, 1), (same, 1), (other, 2)):
        reinitialize(net, seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.first.weight, same.first.weight)
    assert not torch.equal(one.first.weight, other.first.weight)


def test_tied_weights_stay_tied_and_statistics_start_again():
    net = zoo.tiny_gpt2()
    reinitialize(net, seed=0)
    assert net.lm_head.weight is net.transformer.wte.weight
    net = zoo.cnn()
    reinitialize(net, seed=0)
    assert bool((net.bn.running_mean == 0).all())
    assert bool((net.bn.weight == 1).all())


def test_pruned_structures_keep_their_shape_and_get_new_weights():
    inherited = Channels().apply(zoo.cnn(), context("cnn"))
    fresh = Channels(reinit=True).apply(zoo.cnn(), context("cnn"))
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == {name: tensor.shape for name, tensor in inherited.state_dict().items()}
    assert not torch.equal(fresh.stem.weight, inherited.stem.weight)
    shallow = Layers(reinit=True, count=1).apply(zoo.cnn(), context("cnn"))
    assert len(shallow.blocks) == 1
    assert not torch.isin(shallow.stem.weight, zoo.cnn().stem.weight).any()


def test_masks_stay_and_hold_the_new_weights_at_zero():
    inherited = Weights(ratio=0.7).apply(zoo.mlp(), context("mlp"))
    fresh = Weights(ratio=0.7, reinit=True).apply(zoo.mlp(), context("mlp"))
    for name in ("first", "second", "head"):
        one, other = fresh.get_submodule(name), inherited.get_submodule(name)
        assert torch.equal(mask_of(one, "weight").keep, mask_of(other, "weight").keep)
        assert torch.equal(one.weight == 0, other.weight == 0)
        assert not torch.equal(one.weight, other.weight)
        assert bool((one.parametrizations.weight.original[~mask_of(one, "weight").keep] == 0).all())


def test_weights_that_nothing_initializes_are_named_and_nothing_changes():
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.zeros(4)), nn.Linear(4, 4)

    net = nn.Sequential(Token(), nn.Linear(4, 4))
    before = private_copy(net).state_dict()
    with pytest.raises(KdError, match="--reinit: 0 holds weights that no reset_parameters"):
        reinitialize(net, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_weights_that_something_else_computes_are_named():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(KdError, match="--reinit: 0 holds weights"):
        reinitialize(net, seed=0)

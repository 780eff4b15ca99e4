"""encode share: k-means against its definition, values that train, zeros that stay, and the chain of Deep Compression."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from kdkit import Context, Session, Trait
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.traits import traits_of
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit_quantize.encoding.k_means import nearest_values
from kdkit_quantize.encoding.share import Share
from kdkit_quantize.encoding.shared_weight import SharedWeight
from tests.fixtures import zoo


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@given(some.integers(1, 200), some.integers(1, 20), some.integers(0, 999))
@settings(deadline=None)
def test_each_number_has_the_nearest_value_and_each_value_is_the_mean_of_its_numbers(count, values, seed):
    given_numbers = numbers(count, seed)
    centroids, places = nearest_values(given_numbers, values, steps=1000)
    distances = (given_numbers[:, None] - centroids).abs()
    torch.testing.assert_close(distances.gather(1, places[:, None])[:, 0], distances.min(1).values, atol=1e-6, rtol=0)
    for place, centroid in enumerate(centroids):
        if (places == place).any():
            torch.testing.assert_close(given_numbers[places == place].mean(), centroid, atol=1e-5, rtol=1e-4)


def test_few_different_numbers_are_kept_exactly():
    centroids, places = nearest_values(torch.tensor([3.0, -1.0, 3.0, 7.0]), 4)
    assert torch.equal(centroids[places], torch.tensor([3.0, -1.0, 3.0, 7.0]))


def test_more_values_err_less():
    given_numbers = numbers(2000)

    def error(count: int) -> float:
        centroids, places = nearest_values(given_numbers, count)
        return float((centroids[places] - given_numbers).square().mean())

    assert error(4) > 2 * error(8) > 4 * error(16)


def test_the_gradient_of_a_value_is_the_sum_over_the_weights_that_share_it():
    weight = numbers(60).reshape(6, 10)
    shared, upstream = SharedWeight(weight, 3), numbers(60, 1).reshape(6, 10)
    (shared() * upstream).sum().backward()
    for place, value in enumerate(shared.values.detach()):
        torch.testing.assert_close(shared.values.grad[place], upstream[shared().detach() == value].sum())


def test_zeros_stay_zero_while_the_other_values_train():
    weight = numbers(60).reshape(6, 10)
    weight[weight.abs() < 0.7] = 0
    shared = SharedWeight(weight, 3)
    with torch.no_grad():
        shared.values += 1.0
    assert torch.equal(shared() == 0, weight == 0)
    assert shared.values.numel() == 7


def test_a_layer_takes_its_values_and_an_index_of_the_bits_for_each_weight():
    net = nn.Sequential(nn.Linear(64, 10, bias=False))
    small = Share(bits=3).apply(copy.deepcopy(net), Context(task=Classification()))
    assert size_bytes(small) == 64 * 10 * 3 // 8 + 8 * 4
    assert count_parameters(small) == 640
    assert len(small[0].weight.unique()) == 8
    assert traits_of(small) == {Trait.PACKED_WEIGHTS, Trait.TRAINABLE}


def test_it_is_a_valid_stage():
    assert not list(validate_stage(Share))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_model_answers_nearly_alike_and_ties_are_kept(name):
    model, batch = zoo.MODELS[name](), zoo.batch(name)
    small = Share(bits=6).apply(copy.deepcopy(model), Context(task=Classification())).eval()
    outputs = (given if isinstance(given := batch.call(each), torch.Tensor) else given.logits if hasattr(given, "logits") else given[0] for each in (model, small))
    assert nn.functional.cosine_similarity(*(output.flatten() for output in outputs), 0) > 0.995
    if name == "tiny_gpt2":
        assert small.lm_head.packed is small.transformer.wte.packed


def test_the_values_train_and_the_indices_stay():
    mine = Session(zoo.mlp(), train=[zoo.batch("mlp")], eval=[zoo.batch("mlp")], measures=["quality"])
    before = mine.run("encode share --bits 3")
    after = mine.run("tune finetune --epochs 20 --learning-rate 0.01")
    assert torch.equal(before.model.second.packed.codes, after.model.second.packed.codes)
    assert not torch.equal(before.model.second.packed.values, after.model.second.packed.values)
    assert after["loss"] < before["loss"]


def test_prune_share_train_and_encode_follow_each_other_and_each_makes_the_file_smaller(tmp_path):
    """Deep Compression: the masks are folded in first, pruned weights stay zero, and the file holds them in a fraction of a bit."""
    mine = Session(zoo.cnn(), train=[zoo.batch("cnn")], eval=[zoo.batch("cnn")], measures=["size"])
    sizes = [mine.run(line)["size"] for line in ("prune weights --ratio 0.8", "encode share --bits 4", "tune finetune --epochs 1", "encode entropy")]
    base = mine.version("base")["size"]
    assert base > sizes[0] > sizes[1] == sizes[2] > sizes[3]
    made = mine.head.model
    weight = made.blocks[0].conv1.weight
    assert (weight == 0).float().mean() > 0.5
    assert len(weight.unique()) <= 16
    mine.save(tmp_path / "small")
    loaded = Session.open(tmp_path / "small").head.model
    assert torch.equal(zoo.batch("cnn").call(loaded), zoo.batch("cnn").call(made))

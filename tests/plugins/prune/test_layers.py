"""prune layers: which blocks can go, which go first, and what the shallower model is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdkit import Session
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification, Regression
from kdkit_prune.blocks import find_blocks, passing_on, remove_blocks, without_blocks
from kdkit_prune.damage import divergence
from kdkit_prune.layers import Layers, greedy, influence, knee
from tests.fixtures import zoo
from tests.fixtures.data_folder import DATA, absent


class Residual(nn.Module):
    """x + scale · W·relu(V·x)."""

    def __init__(self, width: int, scale: float):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.second(torch.relu(self.first(x)))


SCALES = (0.5, 0.01, 2.0, 0.1, 1.0)


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Sequential(*[Residual(16, scale) for scale in SCALES]), nn.Linear(16, 4)).eval()


def data(items: int = 32) -> Batch:
    x = torch.randn(items, 6, generator=torch.Generator().manual_seed(1))
    return Batch((x,), labels=deep()(x).argmax(1))


def context(batch: Batch, **extra) -> Context:
    return Context(task=Classification(), objects={"train": adopt_data([batch])}, **extra)


def prune(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, Context]:
    about, stage = context(batch), Layers(**options)
    if problems := list(stage.check(model, about)):
        raise KdError(problems[0])
    return stage.apply(private_copy(model), about), about


# blocks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("cnn", ["blocks.0", "blocks.1"]),
        ("tiny_bert", ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        ("tiny_gpt2", ["transformer.h.0", "transformer.h.1"]),
        ("tiny_llama", ["model.layers.0", "model.layers.1"]),
        ("mlp", []),
    ],
)
def test_the_blocks_are_found(name, blocks):
    assert find_blocks(zoo.MODELS[name](), zoo.batch(name)) == (blocks, {})


def test_blocks_whose_outputs_have_another_shape_and_single_layers_are_no_blocks():
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Residual(16, 1.0), nn.Linear(16, 16), nn.Sequential(Residual(16, 1.0), nn.Linear(16, 4)))
    assert find_blocks(net, data()) == (["2", "4.0"], {})


class Skips(nn.Module):
    """Its code counts on all blocks, or uses the number of one."""

    def __init__(self, by_number: bool):
        super().__init__()
        self.blocks, self.by_number = nn.ModuleList(Residual(6, 1.0) for _ in range(3)), by_number

    def forward(self, x: Tensor) -> Tensor:
        if self.by_number:
            return self.blocks[2](self.blocks[1](self.blocks[0](x)))
        for index, block in enumerate(self.blocks):
            x = (index + 1) * block(x)
        return x


def test_blocks_that_the_code_counts_on_are_left_alone_with_the_reason():
    blocks, left = find_blocks(Skips(by_number=True), data())
    assert blocks == []
    assert set(left.values()) == {"without it the forward fails, because the model's code counts on it"}
    blocks, left = find_blocks(Skips(by_number=False), data())
    assert blocks == []
    assert left["blocks.0"] == "the model uses its place or its other outputs elsewhere"


def test_a_model_without_blocks_shares_its_tensors_and_the_original_is_unchanged():
    net = deep()
    twin = without_blocks(net, ["1.1", "1.3"])
    assert len(net[1]) == 5
    assert [block.scale for block in twin[1]] == [0.5, 2.0, 1.0]
    assert twin[1][1].first.weight is net[1][2].first.weight
    with passing_on(net, ["1.1", "1.3"]), torch.no_grad():
        torch.testing.assert_close(net(data().args[0]), twin(data().args[0]))


def test_blocks_that_follow_move_up_and_state_their_new_places():
    net = zoo.tiny_llama()
    assert remove_blocks(net, ["model.layers.0"]) == {"model.layers.1": "model.layers.0"}
    assert net.model.layers[0].self_attn.layer_idx == 0


def test_children_with_names_of_their_own_keep_them():
    from collections import OrderedDict

    net = nn.Sequential(OrderedDict(into=nn.Linear(6, 16), one=Residual(16, 1.0), other=Residual(16, 1.0)))
    assert remove_blocks(net, ["one"]) == {}
    assert list(net._modules) == ["into", "other"]


# the choice ------------------------------------------------------------------------------------------------------------


def test_influence_is_one_less_the_cosine_of_inputs_and_outputs():
    net, batch = deep(), data()
    scores = influence(net, [f"1.{index}" for index in range(5)], [Batch((batch.args[0][:20],)), Batch((batch.args[0][20:],))])
    x = net[0](batch.args[0])
    for index, block in enumerate(net[1]):
        expected = 1 - torch.nn.functional.cosine_similarity(x, block(x), dim=1).mean()
        assert scores[f"1.{index}"] == pytest.approx(float(expected), rel=1e-3, abs=1e-6)
        x = block(x)


@pytest.mark.parametrize("method", ["greedy", "influence", "loss"])
def test_blocks_that_change_little_go_first(method):
    pruned, about = prune(deep(), data(), method=method, count=2)
    assert [block.scale for block in pruned[1]] == [0.5, 2.0, 1.0]
    assert about.renamed == {"1.2": "1.1", "1.4": "1.2"}
    assert len(about.attachments) == 1


def test_greedy_takes_each_round_the_block_with_the_least_damage():
    net, batch = deep(), data()
    original = net(batch.args[0])
    removed: list[str] = []
    for _ in range(3):
        damage = {}
        for index in range(5):
            name = f"1.{index}"
            if name not in removed:
                with passing_on(net, [*removed, name]):
                    damage[name] = divergence(Classification(), original, net(batch.args[0]))
        removed.append(min(damage, key=damage.__getitem__))
    _, about = prune(net, batch, count=3)
    assert f"removed 3 of 5 blocks: {', '.join(removed)}" in about.notes


def test_lazy_greedy_tries_fewer_blocks_than_there_are_rounds_times_blocks():
    tried: list[list[str]] = []
    cost = {f"b.{index}": float(index + 1) for index in range(10)}

    def damage(names: list[str]) -> float:
        tried.append(names)
        return sum(cost[name] for name in names)

    curve = greedy(list(cost), 4, damage, lambda done, text: None)
    assert [name for name, _ in curve] == ["b.0", "b.1", "b.2", "b.3"]
    assert [value for _, value in curve] == [1, 3, 6, 10]
    assert len(tried) < 25


def test_divergence_is_the_mean_kl_of_classes_and_relative_for_numbers():
    p, q = torch.randn(6, 5), torch.randn(6, 5)
    kl = (p.softmax(1) * (p.softmax(1) / q.softmax(1)).log()).sum(1).mean()
    assert divergence(Classification(), p, q) == pytest.approx(float(kl), rel=1e-5)
    assert divergence(Classification(), p, p) == pytest.approx(0, abs=1e-6)
    assert divergence(Regression(), p, q) == pytest.approx(float(((p - q) ** 2).mean() / p.var(correction=0)), rel=1e-5)


def test_the_knee_is_where_the_curve_bends_up():
    assert knee([0.003, 0.005, 0.007, 0.01, 0.013, 0.03, 0.044, 0.13, 0.47]) == 7
    assert knee([1.0, 2.0, 3.0]) == 1


def test_named_blocks_go_without_data_and_those_of_skip_stay():
    about = Context(task=Classification(), objects={"example": adopt_data([data()])})
    pruned = Layers(blocks=("1.2", "1.4")).apply(deep(), about)
    assert [block.scale for block in pruned[1]] == [0.5, 0.01, 0.1]
    assert not Layers(blocks=("1.2",)).required_inputs().calibration
    pruned, _ = prune(deep(), data(), count=2, skip=("1.1",))
    assert [block.scale for block in pruned[1]] == [0.01, 2.0, 1.0]


def test_one_block_of_each_row_stays():
    net = nn.Sequential(
        nn.Linear(6, 16), nn.Sequential(Residual(16, 0.01), Residual(16, 0.01)), nn.Sequential(Residual(16, 1.0), Residual(16, 2.0)), nn.Linear(16, 4)
    ).eval()
    pruned, _ = prune(net, data(), count=2)
    assert (len(pruned[1]), len(pruned[2])) == (1, 1)
    with pytest.raises(KdError, match=r"3 of 4 blocks can't be removed.*one of each row") as caught:
        prune(net, data(), count=3)
    assert "the most is --count 2" in caught.value.hints


# the result ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_a_transformer_states_its_depth_and_comes_back_from_pretrained(name, tmp_path):
    pruned, about = prune(zoo.MODELS[name](), zoo.batch(name), method="influence", count=1)
    assert any(note.startswith("config: ") and note.endswith(" 1") for note in about.notes)
    pruned.save_pretrained(tmp_path)
    again = type(pruned).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(zoo.batch(name).call(again).logits, zoo.batch(name).call(pruned).logits)


def test_batch_norm_statistics_are_estimated_again_and_the_search_leaves_no_trace():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    pruned, _ = prune(net, batch, count=1)
    torch.testing.assert_close(pruned.bn.running_mean, net.stem(batch.args[0]).mean((0, 2, 3)))
    kept, _ = prune(net, batch, count=1, statistics=0)
    assert torch.equal(kept.bn.running_mean, net.bn.running_mean)
    assert not any(module._forward_hooks for module in kept.modules())


def test_the_forecast_has_as_many_blocks_and_needs_no_data():
    about = Context(task=Classification(), objects={"example": adopt_data([data()])})
    assert len(Layers(count=3).forecast(deep(), about).model[1]) == 2


# bad input -------------------------------------------------------------------------------------------------------------


def test_a_model_without_blocks_is_refused_with_what_a_block_is():
    with pytest.raises(KdError, match="Mlp has no block that can be removed") as caught:
        prune(zoo.mlp(), zoo.batch("mlp"))
    assert any("nn.ModuleList" in hint for hint in caught.value.hints)


def test_names_that_are_no_blocks_are_refused_with_the_blocks():
    with pytest.raises(KdError, match="none of 0 can be removed") as caught:
        prune(deep(), data(), blocks=("0",))
    assert "removable: 1.0, 1.1, 1.2, 1.3, 1.4" in caught.value.hints


def test_blocks_and_a_count_exclude_each_other():
    with pytest.raises(KdError, match="--blocks and --count each state how many"):
        prune(deep(), data(), blocks=("1.0",), count=1)


def test_a_shallower_model_trains_and_saves_in_a_session(tmp_path):
    batch = data(64)
    work = Session(deep(), train=(batch.args[0], batch.labels), measures=("quality",))
    work.run("prune layers --count 2")
    work.run("tune finetune --steps 3")
    work.save(str(tmp_path / "shallow"))
    loaded = Session(deep(), train=(batch.args[0], batch.labels), measures=()).load(str(tmp_path / "shallow")).model
    assert len(loaded[1]) == 3


@pytest.mark.slow
@pytest.mark.skipif(bool(missing := absent("cifar_resnet20.safetensors", "cifar10_lossless5k.npz")), reason=missing)
def test_a_third_of_a_real_resnet_goes_with_few_points_of_accuracy():
    import sys

    import numpy as np
    from safetensors.torch import load_file

    sys.path.insert(0, str(DATA))
    import cifar_resnet

    net = cifar_resnet.ResNetC(3)
    net.load_state_dict(load_file(DATA / "cifar_resnet20.safetensors"))
    held = np.load(DATA / "cifar10_lossless5k.npz")
    images, test = cifar_resnet.prep(held["train_x"][:512]), cifar_resnet.prep(held["test_x"][:400])
    labels = torch.from_numpy(held["test_y"][:400]).long()
    about = Context(Classification(), objects={"calibration": adopt_data(images, 128)})
    pruned = Layers(count=2).apply(net.eval(), about).eval()
    with torch.no_grad():
        assert float((pruned(test).argmax(1) == labels).float().mean()) > 0.6

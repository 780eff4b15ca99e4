"""prune channels on convolutional nets, and what holds for every model."""

from __future__ import annotations

import copy
import re
import sys

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import Cancelled, KdError
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import count_parameters
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit_prune.channels import Channels
from tests.fixtures import zoo
from tests.fixtures.data_folder import DATA, absent

IMAGES = Batch((torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(5)),))


class Loader:
    """The little of kdkit's data that the stage asks for."""

    def __init__(self, *batches: Batch):
        self.kept = batches

    def example(self) -> Batch:
        return self.kept[0]

    def batches(self) -> list[Batch]:
        return list(self.kept)


def context_for(batch: Batch, **extra) -> Context:
    return Context(task=Classification(), objects={"train": Loader(batch)}, **extra)


def prune(model: nn.Module, batch: Batch, statistics: int = 0, **options) -> tuple[nn.Module, list[str]]:
    context = context_for(batch)
    made = Channels(statistics=statistics, **options).apply(copy.deepcopy(model), context)
    return made, context.notes


def output(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return batch.call(model)


def without_inner(model: nn.Module, block: int, kept: Tensor, batch: Batch) -> Tensor:
    """What the net says when its second convolution sees zeros for the channels that went."""
    twin = copy.deepcopy(model)

    def zero(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] * kept[:, None, None],)

    twin.blocks[block].conv2.register_forward_pre_hook(zero)
    return output(twin, batch)


def kept_channels(before: nn.BatchNorm2d, after: nn.BatchNorm2d) -> Tensor:
    """Which channels stayed, told by their running means, which are all different."""
    return torch.isin(before.running_mean, after.running_mean)


def test_removing_inner_channels_is_the_same_as_not_reading_them():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    pruned, _ = prune(net, batch, layers=("blocks.0.conv1",))
    kept = kept_channels(net.blocks[0].bn1, pruned.blocks[0].bn1)
    assert int(kept.sum()) == 8
    torch.testing.assert_close(output(pruned, batch), without_inner(net, 0, kept, batch), atol=1e-5, rtol=1e-5)


def test_removing_channels_of_a_residual_stream_is_the_same_as_zeroing_them_wherever_they_are_written():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    pruned, _ = prune(net, batch, layers=("stem", "conv2"))
    kept = kept_channels(net.bn, pruned.bn)
    twin = copy.deepcopy(net)
    for norm in (twin.bn, twin.blocks[0].bn2, twin.blocks[1].bn2):
        norm.register_forward_hook(lambda module, inputs, out: out * kept[:, None, None])
    assert pruned.blocks[0].conv1.out_channels == 16
    assert pruned.head.in_features == int(kept.sum()) == 8
    torch.testing.assert_close(output(pruned, batch), output(twin, batch), atol=1e-5, rtol=1e-5)


def test_the_channels_with_the_least_weight_go_first():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    pruned, _ = prune(net, batch, layers=("blocks.1.conv1",), ratio=0.25)
    kept = kept_channels(net.blocks[1].bn1, pruned.blocks[1].bn1)
    weight = [(net.blocks[1].conv1.weight[unit].abs().sum() + net.blocks[1].conv2.weight[:, unit].abs().sum()).item() for unit in range(16)]
    gone = sorted(range(16), key=weight.__getitem__)[:4]
    assert (~kept).nonzero().flatten().tolist() == sorted(gone)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "depthwise"])
def test_params_and_macs_really_drop_and_the_output_keeps_its_shape(name):
    net, batch = zoo.MODELS[name](), zoo.batch(name)
    pruned, _ = prune(net, batch)
    assert count_parameters(pruned) < 0.5 * count_parameters(net)
    assert count_macs(pruned, batch) < 0.55 * count_macs(net, batch)
    assert output(pruned, batch).shape == output(net, batch).shape


class Wide(nn.Module):
    """Grouped convolution, concatenation, GroupNorm, transposed convolution, PReLU, flattening."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1, groups=4), nn.Conv2d(16, 8, 1)
        self.norm, self.d, self.t, self.p = nn.GroupNorm(4, 24), nn.Conv2d(32, 12, 3), nn.ConvTranspose2d(12, 10, 2), nn.PReLU(10)
        self.f, self.bn, self.head = nn.Linear(10 * 11 * 11, 20), nn.BatchNorm1d(20), nn.Linear(20, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = self.p(self.t(self.d(torch.cat([self.norm(self.b(x)), self.c(x)], 1))))
        return self.head(torch.relu(self.bn(self.f(x.flatten(1)))))


def test_grouped_convolutions_concatenation_group_norm_and_flattening_are_followed():
    torch.manual_seed(0)
    net = Wide().eval()
    pruned, _ = prune(net, IMAGES)
    assert (pruned.b.in_channels, pruned.b.out_channels, pruned.b.groups, tuple(pruned.b.weight.shape)) == (8, 12, 4, (12, 2, 3, 3))
    assert (pruned.norm.num_groups, pruned.norm.num_channels, pruned.d.in_channels, pruned.t.in_channels, pruned.p.num_parameters) == (4, 12, 16, 6, 5)
    assert (pruned.f.in_features, pruned.bn.num_features, pruned.head.out_features) == (5 * 121, 10, 4)
    assert output(pruned, IMAGES).shape == (4, 4)


def test_concatenated_channels_are_taken_from_the_right_half():
    torch.manual_seed(0)
    net = Wide().eval()
    pruned, _ = prune(net, IMAGES, layers=("c",))
    kept = torch.tensor([any(torch.equal(row, new) for new in pruned.c.weight) for row in net.c.weight])
    twin = copy.deepcopy(net)
    twin.c.register_forward_hook(lambda module, inputs, out: out * kept[:, None, None])
    torch.testing.assert_close(output(pruned, IMAGES), output(twin, IMAGES), atol=1e-5, rtol=1e-5)


class PaddedShortcut(nn.Module):
    """The option-A shortcut of CIFAR ResNets: channels padded with zeros, by a number fixed in the code."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.conv3, self.conv4, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.conv2(torch.relu(self.conv1(x))))
        x = torch.relu(x + self.conv4(torch.relu(self.conv3(x))))
        return self.head(x.mean((2, 3)))


def test_a_zero_padded_shortcut_keeps_its_stream_and_loses_the_inner_channels():
    torch.manual_seed(0)
    net = PaddedShortcut().eval()
    pruned, notes = prune(net, IMAGES)
    assert [pruned.stem.out_channels, pruned.conv1.out_channels, pruned.conv2.out_channels, pruned.conv3.out_channels, pruned.conv4.out_channels] == [8, 8, 16, 8, 16]
    assert any(re.match("left alone: channels of (stem|conv2|conv4): ", note) for note in notes)


def test_channels_that_are_shuffled_by_a_reshape_are_left_alone():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, 4)

        def forward(self, x):
            x = self.a(x).unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
            return self.c(self.b(x).mean((2, 3)))

    pruned, notes = prune(Shuffled().eval(), IMAGES)
    assert (pruned.a.out_channels, pruned.b.out_channels) == (16, 6)
    assert any("left alone: channels of a" in note for note in notes)


def test_a_recurrent_layer_and_what_feeds_it_are_left_alone():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.lstm, self.head = nn.Conv1d(4, 12, 3), nn.Conv1d(12, 8, 3), nn.LSTM(8, 10, batch_first=True), nn.Linear(10, 3)

        def forward(self, x):
            return self.head(self.lstm(self.b(torch.relu(self.a(x))).transpose(1, 2))[0][:, -1])

    pruned, notes = prune(Recurrent().eval(), Batch((torch.randn(2, 4, 12),)))
    assert (pruned.a.out_channels, pruned.b.out_channels, pruned.lstm.input_size, pruned.lstm.hidden_size) == (6, 8, 8, 10)
    assert any("left alone: channels of lstm: LSTM keeps its weights in weight_ih_l0" in note for note in notes)


def test_round_to_keeps_multiples_and_rounds_up():
    net, batch = zoo.depthwise(), zoo.batch("depthwise")
    pruned, notes = prune(net, batch, ratio=0.6, round_to=8)
    assert pruned.expand[0].out_channels == 16
    assert pruned.stem.out_channels == 8
    assert any("nothing removed at this ratio" in note and "stem" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.3, 0.9, 0.999])
def test_no_ratio_takes_a_whole_layer(ratio):
    pruned, _ = prune(zoo.cnn(), zoo.batch("cnn"), ratio=ratio)
    assert pruned.blocks[0].conv1.out_channels == max(16 - int(16 * ratio), 1)
    assert output(pruned, zoo.batch("cnn")).shape == (8, 4)


def test_globally_weak_layers_lose_more_and_layerwise_all_lose_alike():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    net.blocks[0].bn1.weight.data.mul_(0.1)
    alike, _ = prune(net, batch, importance="bn-scale", layers=("conv1",))
    compete, _ = prune(net, batch, importance="bn-scale", layers=("conv1",), scope="global")
    assert [block.conv1.out_channels for block in alike.blocks] == [8, 8]
    assert [block.conv1.out_channels for block in compete.blocks] == [1, 15]


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "importance"), [("layer", "l1"), ("global", "lamp")])
def test_a_macs_target_is_met_and_not_overshot_by_much(scope, importance):
    net, batch = zoo.cnn(), zoo.batch("cnn")
    pruned, notes = prune(net, batch, macs=0.5, scope=scope, importance=importance)
    share = count_macs(pruned, batch) / count_macs(net, batch)
    assert 0.38 <= share <= 0.5
    assert any(note.startswith(f"MACs: {share:.3f} of before") for note in notes)


@pytest.mark.slow
def test_a_macs_target_out_of_reach_says_what_can_be_reached():
    with pytest.raises(KdError, match=r"--macs 0.001 can't be reached; all possible removals leave 0\.\d+ of the MACs"):
        prune(zoo.cnn(), zoo.batch("cnn"), macs=0.001)


@pytest.mark.slow
def test_a_ratio_that_removes_nothing_names_the_smallest_that_does():
    with pytest.raises(KdError, match=r"--ratio 0\.01 removes nothing") as caught:
        prune(zoo.cnn(), zoo.batch("cnn"), ratio=0.01)
    assert "--ratio 0.0625" in caught.value.hints[0]
    pruned, _ = prune(zoo.cnn(), zoo.batch("cnn"), ratio=0.0625)
    assert pruned.stem.out_channels == 15


def test_rounding_that_leaves_nothing_to_remove_is_an_error():
    with pytest.raises(KdError, match="keeping a multiple of 64 channels leaves nothing to remove"):
        prune(zoo.cnn(), zoo.batch("cnn"), round_to=64)


def test_a_model_without_free_widths_is_refused_with_the_reasons():
    with pytest.raises(KdError, match="nothing can be removed from Lstm") as caught:
        prune(zoo.lstm(), zoo.batch("lstm"))
    assert "left alone: channels of head: its width is the width of the model's own output, (2, 4)" in caught.value.hints
    assert any(hint.startswith("left alone: channels of lstm: LSTM keeps its weights in weight_ih_l0") for hint in caught.value.hints)


def test_units_that_only_transformers_have_are_refused_elsewhere():
    with pytest.raises(KdError, match="Cnn has no transformer blocks that kdkit knows, and --what asks for heads and ffn only"):
        prune(zoo.cnn(), zoo.batch("cnn"), what=("heads", "ffn"))


def test_bn_scale_without_batch_norm_is_refused():
    with pytest.raises(KdError, match="nothing can be removed") as caught:
        prune(zoo.mlp(), zoo.batch("mlp"), importance="bn-scale")
    assert any("no BatchNorm follows it" in hint for hint in caught.value.hints)


def test_attention_of_an_unknown_layout_never_reaches_the_tracer():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(16, 2)

        def forward(self, x):
            q, k = self.a(x).unflatten(-1, (2, 8)).transpose(1, 2), self.b(x).unflatten(-1, (1, 8)).transpose(1, 2)
            k = k.expand(-1, 2, -1, -1)
            return self.head((torch.softmax(q @ k.transpose(2, 3), -1) @ k).transpose(1, 2).flatten(2).mean(1))

    with pytest.raises(KdError, match="does not know how the attention of Own is laid out"):
        prune(Own().eval(), Batch((torch.randn(2, 5, 8),)))


def test_skip_leaves_a_layer_and_all_that_hangs_on_it():
    pruned, notes = prune(zoo.cnn(), zoo.batch("cnn"), skip=("stem",))
    assert (pruned.stem.out_channels, pruned.blocks[0].conv2.out_channels, pruned.blocks[0].conv1.out_channels) == (16, 16, 8)
    assert any("--skip names stem" in note for note in notes)


def test_naming_a_part_of_coupled_layers_prunes_nothing_and_names_the_rest():
    with pytest.raises(KdError) as caught:
        prune(zoo.cnn(), zoo.batch("cnn"), layers=("blocks.0.conv2",))
    assert any("coupled with blocks.1.conv2, stem, which --layers does not name" in hint for hint in caught.value.hints)


def test_naming_layers_that_make_no_units_names_those_that_do():
    with pytest.raises(KdError, match="nothing can be removed from Cnn") as caught:
        prune(zoo.cnn(), zoo.batch("cnn"), layers=("pool",))
    assert caught.value.hints == ("units are made by head, blocks.0.conv2, blocks.1.conv2, stem and 2 more",)


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(KdError, match="'convv1'"):
        prune(zoo.cnn(), zoo.batch("cnn"), layers=("convv1",))


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["l1", "l2", "fpgm", "lamp", "bn-scale", "taylor", "random"])
def test_every_importance_prunes_and_twice_the_same(importance):
    net, batch = zoo.cnn(), zoo.batch("cnn")
    first, second = (prune(net, batch, importance=importance)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["stem.weight"].shape[0] == 8


@pytest.mark.slow
def test_modes_and_gradient_flags_stay_and_no_gradients_are_left():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    net.train()
    net.bn.eval()
    net.stem.weight.requires_grad_(False)
    pruned, _ = prune(net, batch, importance="taylor")
    assert [module.training for module in pruned.modules()] == [module.training for module in net.modules()]
    assert {name: weight.requires_grad for name, weight in pruned.named_parameters()} == {name: weight.requires_grad for name, weight in net.named_parameters()}
    assert all(weight.grad is None for weight in pruned.parameters())


def test_the_statistics_after_the_cut_are_those_of_the_cut_net():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    pruned, notes = prune(net, batch, statistics=4)
    seen = pruned.stem(batch.args[0])
    torch.testing.assert_close(pruned.bn.running_mean, seen.mean((0, 2, 3)))
    assert "statistics of 5 BatchNorms estimated again on 1 batch" in notes
    before, _ = prune(net, batch)
    assert all(torch.equal(weight, before.get_parameter(name)) for name, weight in pruned.named_parameters())


def test_without_calibration_or_training_data_the_statistics_stay_and_a_note_says_so():
    context = Context(task=Classification(), objects={"eval": Loader(zoo.batch("cnn"))})
    pruned = Channels().apply(zoo.cnn(), context)
    assert torch.isin(pruned.bn.running_mean, zoo.cnn().bn.running_mean).all()
    assert any(note.startswith("BatchNorm statistics are those of the whole model") for note in context.notes)


@pytest.mark.slow
def test_a_pruned_net_can_be_copied_and_trained():
    batch = zoo.batch("cnn")
    pruned, _ = prune(zoo.cnn(), batch)
    twin = copy.deepcopy(pruned)
    assert torch.equal(output(twin, batch), output(pruned, batch))
    batch.call(twin.train()).sum().backward()
    assert all(weight.grad.shape == weight.shape for weight in twin.parameters())


def test_a_cancelled_stage_stops():
    context = context_for(zoo.batch("cnn"))
    context.cancelled.set()
    with pytest.raises(Cancelled):
        Channels().apply(zoo.cnn(), context)


@pytest.mark.slow
def test_only_taylor_asks_for_training_data_and_its_forecast_does_without():
    assert not Channels().required_inputs().train
    assert Channels(importance="taylor").required_inputs().train
    context = Context(task=Classification(), objects={"example": Loader(zoo.batch("cnn"))})
    forecast = Channels(importance="taylor").forecast(zoo.cnn(), context)
    assert count_parameters(forecast.model) == count_parameters(prune(zoo.cnn(), zoo.batch("cnn"))[0])


@pytest.mark.slow
def test_the_zero_initialized_scale_of_a_block_hides_nothing():
    net, batch = zoo.cnn(), zoo.batch("cnn")
    for block in net.blocks:
        nn.init.zeros_(block.bn2.weight)
    pruned, _ = prune(net, batch)
    assert pruned.blocks[0].conv1.out_channels == 8


@pytest.mark.slow
@pytest.mark.skipif(bool(missing := absent("cifar_resnet56.safetensors")), reason=missing)
def test_resnet56_is_pruned_to_2_1_times_fewer_macs():
    from safetensors.torch import load_file

    sys.path.insert(0, str(DATA))
    try:
        from cifar_resnet import ResNetC
    finally:
        sys.path.remove(str(DATA))
    net = ResNetC(9)
    net.load_state_dict(load_file(DATA / "cifar_resnet56.safetensors"))
    batch = Batch((torch.randn(2, 3, 32, 32),))
    pruned, _ = prune(net.eval(), batch, macs=1 / 2.1)
    assert 2.1 <= count_macs(net, batch[:1]) / count_macs(pruned, batch[:1]) <= 2.2
    assert output(pruned, batch).shape == (2, 10)


def test_a_forecast_that_takes_what_may_be_cut_from_the_one_before_is_the_same_as_the_cut():
    batch = zoo.batch("cnn")
    first = next(name for name, module in zoo.cnn().named_modules() if isinstance(module, nn.Conv2d))
    for options in ({"ratio": 0.25}, {"ratio": 0.5}, {"ratio": 0.75}, {"skip": (first,)}):
        forecast = Channels(**options).forecast(zoo.cnn(), context_for(batch))
        assert count_parameters(forecast.model) == count_parameters(prune(zoo.cnn(), batch, **options)[0])

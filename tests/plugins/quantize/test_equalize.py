"""quantize equalize: channels with equal ranges and the same outputs, against the formula of the paper."""

import copy

import pytest
import torch
from torch import nn

from kdkit import Batch, Context, KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit_quantize.channel_groups import Maker, Reader, channel_groups
from kdkit_quantize.equalize import Equalize, absorb, ranges_of
from tests.fixtures import zoo


def seeded(*layers: nn.Module) -> nn.Sequential:
    """Layers with random weights, and BatchNorms with random statistics, whose channels differ a hundredfold."""
    net, random = nn.Sequential(*layers).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
                spread = torch.logspace(-1, 1, layer.weight.shape[0])
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) * spread.reshape(-1, *[1] * (layer.weight.dim() - 1)))
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_var.uniform_(0.5, 2, generator=random)
                layer.running_mean.normal_(generator=random)
                layer.bias.normal_(generator=random)
    return net


def equalized(net: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    context = Context(task=Classification(), objects={"eval": adopt_data([batch])}, stage="quantize equalize")
    return Equalize(**options).apply(copy.deepcopy(net), context), context.notes


IMAGES = Batch((torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)),))
VECTORS = Batch((torch.randn(16, 6, generator=torch.Generator().manual_seed(2)),))


class Residual(nn.Module):
    """A stream that three layers write to and two read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = seeded(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), seeded(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.block(x)).relu().mean((2, 3)))


NETS = {
    "linear": (seeded(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), VECTORS),
    "norm": (seeded(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)), IMAGES),
    "depthwise": (seeded(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)), IMAGES),
    "grouped": (seeded(nn.Conv2d(3, 8, 1), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, groups=2)), IMAGES),
    "residual": (Residual().eval(), IMAGES),
}


def test_it_is_a_valid_stage():
    assert not list(validate_stage(Equalize))


@pytest.mark.parametrize("name", NETS)
def test_outputs_stay_and_every_channel_has_the_same_range_where_it_is_made_and_read(name):
    net, batch = NETS[name]
    made, notes = equalized(net, batch)
    wanted = batch.call(net)
    torch.testing.assert_close(batch.call(made), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    groups = channel_groups(made, batch)
    assert len(groups) == {"linear": 1, "norm": 2, "depthwise": 2, "grouped": 1, "residual": 2}[name]
    for group in groups:
        torch.testing.assert_close(*ranges_of(made, group), rtol=2e-3, atol=0)
    assert notes[0].startswith(f"{len(groups)} groups of channels equalized")


def test_two_layers_get_the_factors_of_the_paper():
    """s_i = sqrt(r1_i r2_i) / r2_i; W1 / s by rows and W2 · s by columns (Nagel et al., equations 8 and 9), in loops."""
    net, batch = NETS["linear"]
    made, _ = equalized(net, batch)
    for channel in range(8):
        r1 = max(abs(float(value)) for value in net[0].weight[channel])
        r2 = max(abs(float(value)) for value in net[2].weight[:, channel])
        factor = (r1 * r2) ** 0.5 / r2
        torch.testing.assert_close(made[0].weight[channel], net[0].weight[channel] / factor)
        torch.testing.assert_close(made[0].bias[channel], net[0].bias[channel] / factor)
        torch.testing.assert_close(made[2].weight[:, channel], net[2].weight[:, channel] * factor)


def test_a_residual_stream_is_one_group_of_all_that_write_and_read_it():
    stream, inside = channel_groups(*NETS["residual"])
    assert [maker.layer for maker in stream.makers] == ["stem.0", "block.3"]
    assert stream.makers[0] == Maker("stem.0", "stem.1")
    assert [reader.layer for reader in stream.readers] == ["block.0", "head"]
    assert (inside.makers, inside.readers) == ([Maker("block.0", "block.1")], [Reader("block.3")])


def test_flattened_channels_are_read_by_neighbouring_features():
    assert channel_groups(*NETS["norm"])[1].readers == [Reader("7", repeat=16)]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu())


class Peeks(nn.Module):
    """Reads a weight besides calling its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x).relu()) + self.one.weight.sum()


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(6, 8)),
        Tied(),
        Peeks(),
    ],
)
def test_channels_that_a_factor_would_change_are_left_alone(net):
    assert channel_groups(net, VECTORS) == []
    with pytest.raises(KdError, match="no channels that can be rescaled"):
        equalized(net, VECTORS)


def test_one_scale_for_a_whole_weight_loses_far_less_afterwards():
    """A plain net, whose channels were rescaled by up to a hundred without a change of its outputs."""
    torch.manual_seed(0)
    net, batch, factors = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)), VECTORS, torch.logspace(-2, 2, 32)
    wanted = batch.call(net)
    with torch.no_grad():
        net[0].weight *= factors[:, None]
        net[0].bias *= factors
        net[2].weight /= factors
    made, notes = equalized(net, batch)

    def error(model: nn.Module) -> float:
        rounded = copy.deepcopy(model)
        with torch.no_grad():
            for layer in rounded.modules():
                if isinstance(layer, nn.Linear):
                    step = layer.weight.abs().max() / 127
                    layer.weight.copy_((layer.weight / step).round() * step)
        return float((batch.call(rounded) - wanted).square().mean())

    assert error(made) < error(net) / 100
    before, after = (float(text.split(" in ")[0].split()[-1]) for text in notes[1].split(" became "))
    assert after < before / 100


def test_absorbed_biases_change_nothing_where_the_relu_cuts_nothing():
    net = seeded(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        net[0].weight *= 0.01
        net[1].weight.fill_(0.5)
        net[1].bias.copy_(torch.tensor([4.0, 1.0, 2.0, 5.0]))
        net[1].running_mean.zero_()
        net[1].running_var.fill_(100.0)
    wanted = IMAGES.call(net)
    (group,) = channel_groups(net, IMAGES)
    with torch.no_grad():
        assert absorb(net, group) == 3
    assert net[1].bias.tolist() == [1.5, 1.0, 1.5, 1.5]
    torch.testing.assert_close(IMAGES.call(net), wanted, rtol=1e-3, atol=1e-3)
    assert Equalize().keeps_values
    assert not Equalize(absorb=True).keeps_values
    assert equalized(net, IMAGES, absorb=True)[1][-1].endswith("biases absorbed")


def test_biases_are_not_absorbed_behind_a_padding_that_would_then_be_wrong():
    net = seeded(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    with torch.no_grad():
        net[1].bias.fill_(1e3)
        assert absorb(net, channel_groups(net, IMAGES)[0]) == 0


class Rows(nn.Module):
    """Reads positions as if they were channels: there are as many of both."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.read = nn.Conv1d(1, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(torch.relu(self.made(x[:, None])).reshape(-1, 6)).reshape(len(x), 6, 4).mean(1)


def test_a_reshape_that_mixes_channels_and_positions_is_left_alone():
    with pytest.raises(KdError, match="no channels that can be rescaled"):
        equalized(Rows(), VECTORS, absorb=True)


class Doubled(nn.Module):
    """Adds channels to themselves before they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = seeded(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.body(x).relu()
        return self.head(seen + seen)


def test_biases_are_not_absorbed_where_channels_are_added_to_themselves():
    net = Doubled()
    with torch.no_grad():
        net.body[1].bias.fill_(1e3)
    (group,) = channel_groups(net, IMAGES)
    assert absorb(net, group) == 0
    made, _ = equalized(net, IMAGES)
    torch.testing.assert_close(IMAGES.call(made), IMAGES.call(net), rtol=1e-3, atol=1e-3)


def test_a_norm_without_statistics_is_left_alone():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 3)).eval()
    with pytest.raises(KdError, match="no channels that can be rescaled"):
        equalized(net, VECTORS)


@pytest.mark.parametrize("name", ["cnn", "depthwise", "mlp"])
def test_nets_of_the_zoo_keep_their_outputs(name):
    net, batch = zoo.MODELS[name]().eval(), zoo.batch(name)
    made, _ = equalized(net, batch)
    torch.testing.assert_close(batch.call(made), batch.call(net), rtol=1e-3, atol=1e-4)

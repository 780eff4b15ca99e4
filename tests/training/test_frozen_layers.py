"""What a training does not name stays bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from kdkit.training import FrozenLayers


class Counter(nn.Module):
    """Counts its calls in a buffer, in whatever mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


STATEFUL = {
    "batch norm": lambda: nn.BatchNorm1d(6),
    "batch norm without weights": lambda: nn.BatchNorm1d(6, affine=False),
    "instance norm": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(6, 6)),
    "counter": Counter,
}


def train(net: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([weight for weight in net.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(steps):
        net(torch.randn(8, 6) * 3 + 1).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", STATEFUL)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_and_statistics_of_frozen_modules_stay_bit_for_bit(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), STATEFUL[kind](), nn.Linear(6, 3)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    frozen = FrozenLayers(net, [net[2]])
    train(net)
    frozen.restore()
    moved = {name.partition(".")[0] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"2"}


@pytest.mark.parametrize("kind", ["batch norm", "batch norm without weights", "spectral norm"])
def test_statistics_of_trained_modules_move(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), STATEFUL[kind](), nn.Linear(6, 3)).train()
    before = {name: tensor.clone() for name, tensor in net[1].named_buffers()}
    frozen = FrozenLayers(net, [net[1], net[2]])
    train(net)
    frozen.restore()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in net[1].named_buffers())


def test_a_weight_that_a_trained_module_shares_is_trained() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    FrozenLayers(net, [net[1]])
    assert net[0].weight.requires_grad
    assert not net[0].bias.requires_grad

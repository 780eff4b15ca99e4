"""tune finetune: training on labels, of all layers or of some."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.stage import Needs
from kdkit.tasks import Classification
from kdkit_tune.finetune import Finetune


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def points(items: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(items, 6, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


def context(data: object = None) -> Context:
    return Context(Classification(), objects={"train": adopt_data(points() if data is None else data, 16)})


@pytest.mark.slow
def test_it_learns_what_the_labels_say() -> None:
    model = net()
    Finetune(epochs=40, learning_rate=0.01).apply(model, context())
    x, y = points()
    assert (model(x).argmax(1) == y).float().mean() > 0.95


def test_its_loss_is_the_mean_cross_entropy() -> None:
    model, run, seen = net(), context(), []
    run.observe = seen.append
    x, y = points()
    expected = nn.functional.cross_entropy(model(x), y).item()
    Finetune(steps=1, batch_size=64).apply(model, run)
    assert seen[0].figures["label"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_minus_hundred_count_for_nothing() -> None:
    x, y = points()
    ignored = torch.cat([y, torch.full((16,), -100)])
    few, many = net(), net()
    Finetune(steps=1, optimizer="sgd", learning_rate=0.1, batch_size=80).apply(few, context((x, y)))
    Finetune(steps=1, optimizer="sgd", learning_rate=0.1, batch_size=80).apply(many, context((torch.cat([x, 9 * torch.ones(16, 6)]), ignored)))
    for one, other in zip(few.parameters(), many.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_only_the_named_layers_are_trained_and_the_flags_come_back() -> None:
    model, before = net(), net()
    Finetune(layers=("4", "2"), weight_decay=0.1).apply(model, context())
    moved = [not torch.equal(one, other) for one, other in zip(model.parameters(), before.parameters(), strict=True)]
    assert moved == [False, False, True, True, True, True]
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_pattern_that_fits_nothing_is_refused_before_any_work() -> None:
    with pytest.raises(KdError, match="pattern 'heads'"):
        list(Finetune(layers=("heads",)).check(net(), context()))


def test_layers_without_weights_leave_nothing_to_train() -> None:
    with pytest.raises(KdError, match="no weights to train"):
        Finetune(layers=("1",)).apply(net(), context())


def test_it_needs_labels() -> None:
    assert Finetune().required_inputs() == Needs(train=True, labels=True)
    with pytest.raises(KdError, match="tune finetune needs labels"):
        Finetune().apply(net(), context(points()[0]))


def test_statistics_of_norms_that_are_not_named_stay_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Finetune(layers=("4", "5"), epochs=2).apply(model, context())
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"4", "5"}
    assert "4.running_mean" in moved
    assert not any(module.training for module in model.modules())

"""Parameter groups: learning rates of their own, adversaries that ascend, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdkit import Context, KdError, Step, Term, TrainPart, TrainStage
from kdkit.training import fit
from tests.fixtures.training import Labels, context, in_order, net, points, stage_of, weights


class Grouped(Labels):
    """The label loss, with groups of the model's weights."""

    def __init__(self, *groups: Any):
        self.groups = groups

    def parameter_groups(self, model: nn.Module) -> Iterable[dict[str, Any]]:
        for name, options in self.groups:
            yield {"params": model.get_submodule(name).parameters(), **options}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_group_trains_with_its_own_rate_times_the_schedule_and_its_own_decay(optimizer: str) -> None:
    x, y = points()
    mine, theirs = net(), net()
    made = stage_of(lambda: Grouped(("3", {"lr_factor": 0.1, "weight_decay": 0.0})), optimizer=optimizer, weight_decay=0.05, learning_rate=0.1, schedule="linear")
    fit(mine, [made], context(in_order(x, y)))
    kinds: dict[str, Any] = {"sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9), "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    own = kinds[optimizer]([{"params": theirs[0].parameters(), "weight_decay": 0.05}, {"params": theirs[3].parameters(), "weight_decay": 0.0}])
    for step in range(4):
        for group, factor in zip(own.param_groups, (1.0, 0.1), strict=True):
            group["lr"] = 0.1 * (1 - step / 4) * factor
        F.cross_entropy(theirs(x[16 * step : 16 * step + 16]), y[16 * step : 16 * step + 16]).backward()
        own.step()
        own.zero_grad()
    assert torch.allclose(weights(mine), weights(theirs), rtol=0, atol=1e-6)


def test_without_groups_or_with_factor_one_the_training_is_the_same_to_the_bit() -> None:
    plain, grouped = net(dropout=0.2), net(dropout=0.2)
    options = {"epochs": 3, "weight_decay": 0.01, "optimizer": "sgd"}
    fit(plain, [stage_of(**options)], context())
    fit(grouped, [stage_of(lambda: Grouped(("3", {"lr_factor": 1.0})), **options)], context())
    assert torch.equal(weights(plain), weights(grouped))


# A learned step size ---------------------------------------------------------------------------------------------------


class LearnedStep(nn.Module):
    """Rounds a weight to multiples of a scale that learns (LSQ, Esser et al., 2020)."""

    def __init__(self, weight: Tensor, limit: int = 7):
        super().__init__()
        self.limit, self.scale = limit, nn.Parameter(2 * weight.detach().abs().mean() / limit**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        divided = (weight / self.scale).clamp(-self.limit, self.limit)
        return (divided + (divided.round() - divided).detach()) * self.scale


class Lsq(TrainStage):
    """Learn the scales of 4 bits with a tenth of the learning rate, and round."""

    id: ClassVar[str] = "quantize.toy-lsq"

    def prepare(self, model: nn.Module, context: Context) -> None:
        for layer in [layer for layer in model.modules() if isinstance(layer, nn.Linear)]:
            parametrize.register_parametrization(layer, "weight", LearnedStep(layer.weight))

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return ScalePart()

    def finish(self, model: nn.Module, context: Context) -> None:
        for layer in [layer for layer in model.modules() if parametrize.is_parametrized(layer)]:
            parametrize.remove_parametrizations(layer, "weight")


class ScalePart(Labels):
    """The label loss; the scales learn slowly."""

    def parameter_groups(self, model: nn.Module) -> Iterable[dict[str, Any]]:
        yield {"params": [module.scale for module in model.modules() if isinstance(module, LearnedStep)], "lr_factor": 0.1, "weight_decay": 0.0}


def test_learned_scales_take_a_tenth_of_the_step_that_all_other_weights_take() -> None:
    moved: dict[str, float] = {}

    class Watched(ScalePart):
        def open(self, model: nn.Module) -> None:
            self.before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

        def close(self, model: nn.Module) -> None:
            moved.update({name: float((weight.detach() - self.before[name]).abs().max()) for name, weight in model.named_parameters()})

    class WatchedLsq(Lsq):
        id: ClassVar[str] = "quantize.toy-watched"

        def part(self, model: nn.Module, context: Context) -> TrainPart:
            return Watched()

    # the first step of Adam moves each weight by the learning rate
    model = fit(net(), [WatchedLsq(steps=1, optimizer="adam", learning_rate=0.01, schedule="constant")], context())
    assert moved["0.parametrizations.weight.0.scale"] == pytest.approx(0.001, rel=1e-3)
    assert moved["0.parametrizations.weight.original"] == pytest.approx(0.01, rel=1e-3)
    assert all(len(layer.weight.unique()) <= 15 for layer in model if isinstance(layer, nn.Linear))
    assert sorted(model.state_dict()) == sorted(net().state_dict())


@pytest.mark.slow
def test_a_net_with_learned_scales_learns() -> None:
    model = fit(net(), [Lsq(epochs=40, learning_rate=0.02)], context(points(256)))
    x, y = points(256, seed=8)
    assert (model(x).argmax(1) == y).float().mean() > 0.85


# An adversary ----------------------------------------------------------------------------------------------------------


class Adversary(TrainPart):
    """A perturbation shared by all items raises the loss that the model lowers; it is held within a ball."""

    def open(self, model: nn.Module) -> None:
        self.modules["adversary"] = nn.ParameterDict({"shift": nn.Parameter(torch.zeros(6))})  # type: ignore[assignment]

    def parameter_groups(self, model: nn.Module) -> Iterable[dict[str, Any]]:
        yield {"params": self.modules.parameters(), "maximize": True, "lr_factor": 5.0}

    def terms(self, step: Step) -> Iterator[Term]:
        output = step.model(step.batch.args[0] + self.modules["adversary"]["shift"])
        yield Term("shifted", step.task.losses(output, step.batch), labels=True)

    def close(self, model: nn.Module) -> None:
        Adversary.shift = self.modules["adversary"]["shift"].detach().clone()

    shift: ClassVar[Tensor]


def test_an_adversary_climbs_the_loss_that_the_model_descends_as_written_out() -> None:
    x, y = points()
    mine, theirs, shift = net(), net(), nn.Parameter(torch.zeros(6))
    fit(mine, [stage_of(Adversary, optimizer="sgd", learning_rate=0.1, schedule="constant")], context(in_order(x, y)))
    down, up = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9), torch.optim.SGD([shift], 0.5, momentum=0.9)
    for start in range(0, 64, 16):
        loss = F.cross_entropy(theirs(x[start : start + 16] + shift), y[start : start + 16])
        down.zero_grad()
        up.zero_grad()
        loss.backward()
        shift.grad.neg_()  # type: ignore[union-attr]
        down.step()
        up.step()
    assert torch.allclose(weights(mine), weights(theirs), rtol=0, atol=1e-6)
    assert torch.allclose(Adversary.shift, shift, rtol=0, atol=1e-6)
    assert F.cross_entropy(theirs(x + Adversary.shift), y) > F.cross_entropy(theirs(x), y)


# Bad groups, and resuming ------------------------------------------------------------------------------------------------


def test_a_weight_in_two_groups_is_refused_by_its_name_and_those_of_the_stages() -> None:
    stages = [stage_of(lambda name=name: Grouped(("0", {})), name) for name in ("a", "b")]
    with pytest.raises(KdError, match=r"0\.weight is in two parameter groups, of tune\.a and tune\.b"):
        fit(net(), stages, context())
    with pytest.raises(KdError, match=r"3\.weight is in two parameter groups of tune\.made"):
        fit(net(), [stage_of(lambda: Grouped(("0", {}), ("3", {}), ("3", {})))], context())


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": [nn.Parameter(torch.zeros(1))]}, "belongs neither to the model nor to the part's modules"),
        ({"lr_factor": 0.1}, "a parameter group has no params"),
        ({"params": [], "lr": 0.1}, "a parameter group has no key 'lr'"),
        ({"params": [], "lr_factor": -1.0}, "lr_factor is -1.0, and must be 0 or more"),
        ({"params": [], "lr_factor": "small"}, "lr_factor is 'small', and must be 0 or more"),
        ({"params": [], "weight_decay": -0.1}, "weight_decay is -0.1, and must be 0 or more"),
        ([], "a parameter group is a dict, not a list"),
    ],
)
def test_a_group_that_is_not_valid_is_one_message(group: Any, message: str) -> None:
    class Wrong(Labels):
        def parameter_groups(self, model: nn.Module) -> Iterable[dict[str, Any]]:
            yield group

    with pytest.raises(KdError, match=message):
        fit(net(), [stage_of(Wrong)], context())


def test_frozen_weights_in_a_group_stay_frozen() -> None:
    model = net()
    model[0].requires_grad_(False)
    fit(model, [stage_of(lambda: Grouped(("0", {"lr_factor": 10.0})))], context())
    assert torch.equal(model[0].weight, net()[0].weight)
    assert not torch.equal(model[3].weight, net()[3].weight)


class Interrupted(Adversary):
    """Stops in the middle of an epoch."""

    at: ClassVar[int] = -1

    def after_step(self, step: Step) -> None:
        if step.index == self.at:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_training_with_groups_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stages(folder: str, **options: Any) -> list[TrainStage]:
        return [stage_of(Interrupted, "a", epochs=3, checkpoint=str(tmp_path / folder), **options), stage_of(lambda: Grouped(("3", {"lr_factor": 0.3})), "b")]

    straight = fit(net(dropout=0.2), stages("one"), context())
    shift = Adversary.shift
    monkeypatch.setattr(Interrupted, "at", 6)
    with pytest.raises(KeyboardInterrupt):
        fit(net(dropout=0.2), stages("two"), context())
    monkeypatch.setattr(Interrupted, "at", -1)
    resumed = fit(net(dropout=0.2), stages("two", resume=True), context())
    assert torch.equal(weights(resumed), weights(straight))
    assert torch.equal(Adversary.shift, shift)

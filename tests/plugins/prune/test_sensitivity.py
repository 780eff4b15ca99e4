"""Ratios by sensitivity, and latency as a target."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.measurement import count_macs, count_parameters
from kdkit.models import private_copy
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit_prune import channels, layers
from kdkit_prune.channels import Channels
from kdkit_prune.groups import Group
from kdkit_prune.layers import Layers
from kdkit_prune.sensitivity import allocate
from tests.fixtures import zoo


def groups(*units: int) -> list[Group]:
    return [Group(str(index), "channels", count, ()) for index, count in enumerate(units)]


def scores(*units: int) -> list[torch.Tensor]:
    return [torch.arange(count).float() for count in units]


def share_kept(*units: int):
    return lambda plan: 1 - sum(int(gone.sum()) for gone in plan) / sum(units)


def harm(*rates: float):
    return lambda plan: sum(rate * int(gone.sum()) for rate, gone in zip(rates, plan, strict=True))


def test_units_go_where_they_cost_least_and_the_lowest_scores_first():
    plan = allocate(groups(16, 16), scores(16, 16), 1, 0.7, share_kept(16, 16), harm(1.0, 0.01))
    assert [int(gone.sum()) for gone in plan] == [0, 12]
    assert plan[1].nonzero().flatten().tolist() == list(range(12))


def test_a_group_loses_half_of_what_it_has_in_each_of_two_rounds_at_most():
    plan = allocate(groups(16, 16), scores(16, 16), 1, 0.3, share_kept(16, 16), harm(1.0, 0.01))
    assert [int(gone.sum()) for gone in plan] == [12, 12]


def test_a_target_beyond_that_has_no_plan():
    assert allocate(groups(16, 16), scores(16, 16), 1, 0.2, share_kept(16, 16), harm(1.0, 1.0)) is None


def test_damage_is_measured_again_after_the_first_round():
    """The second half of a group's units costs a thousand times as much as the first."""

    def steep(plan):
        return sum(min(int(gone.sum()), 8) * rate + max(int(gone.sum()) - 8, 0) * 1000 for rate, gone in zip((0.01, 1.0), plan, strict=True))

    plan = allocate(groups(16, 16), scores(16, 16), 1, 0.5, share_kept(16, 16), steep)
    assert [int(gone.sum()) for gone in plan] == [8, 10]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(4, 40), min_size=1, max_size=5), st.floats(0.3, 0.95), st.sampled_from([1, 4]), st.randoms(use_true_random=False))
def test_a_plan_meets_the_target_and_keeps_a_quarter_of_every_group(units, target, round_to, random):
    plan = allocate(groups(*units), scores(*units), round_to, target, share_kept(*units), harm(*[random.random() for _ in units]))
    if plan is not None:
        assert share_kept(*units)(plan) <= target
        for count, gone in zip(units, plan, strict=True):
            assert int((~gone).sum()) >= count / 4
            assert not int(gone.sum()) or int((~gone).sum()) % round_to == 0


# in the stages ---------------------------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    """Two hidden layers of 16; the first half of the second one hardly matters."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    made[4].weight.data[:, :12] *= 1e-3
    return made


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


def prune(stage, model: nn.Module | None = None, batch: Batch | None = None) -> tuple[nn.Module, Context]:
    about = Context(Classification(), objects={"calibration": adopt_data([batch or Batch((X,))])})
    model = private_copy(net() if model is None else model)
    if problems := list(stage.check(model, about)):
        raise KdError(problems[0])
    return stage.apply(model, about), about


def test_the_layer_whose_units_matter_least_loses_most():
    pruned, about = prune(Channels(scope="sensitivity", ratio=0.375))
    assert (pruned[0].out_features, pruned[2].out_features) == (16, 4)
    assert "units: 0.625 of before, by sensitivity (--ratio 0.375)" in about.notes


def test_sensitivity_meets_a_target_of_multiply_adds():
    pruned, _ = prune(Channels(scope="sensitivity", macs=0.6), zoo.cnn(), zoo.batch("cnn"))
    assert count_macs(pruned, zoo.batch("cnn")) <= 0.6 * count_macs(zoo.cnn(), zoo.batch("cnn"))


def test_sensitivity_says_what_it_can_not_reach():
    with pytest.raises(KdError, match=r"--scope sensitivity does not reach --ratio 0.9: a layer loses at most three quarters"):
        prune(Channels(scope="sensitivity", ratio=0.9))


@pytest.mark.parametrize("scope", ["layer", "global", "sensitivity"])
def test_latency_is_met_by_the_smallest_ratio(monkeypatch, scope):
    monkeypatch.setattr(channels, "time_share", lambda changed, original, batch: count_parameters(changed) / count_parameters(original))
    pruned, about = prune(Channels(latency=0.5, scope=scope))
    assert count_parameters(pruned) <= 0.5 * count_parameters(net())
    assert any(note.startswith("latency: 0.") and note.endswith("(--latency 0.5)") for note in about.notes)


def test_a_latency_out_of_reach_is_refused_with_the_best(monkeypatch):
    monkeypatch.setattr(channels, "time_share", lambda changed, original, batch: 0.8)
    with pytest.raises(KdError, match=r"--latency 0.5 can't be reached; all possible removals leave 0.800 of the latency"):
        prune(Channels(latency=0.5))
    monkeypatch.setattr(layers, "time_share", lambda changed, original, batch: 0.8)
    with pytest.raises(KdError, match=r"prune layers: --latency 0.5 can't be reached; without 1 blocks it is 0.80"):
        prune(Layers(latency=0.5), zoo.cnn(), zoo.batch("cnn"))


def test_macs_and_latency_exclude_each_other():
    with pytest.raises(KdError, match="--macs and --latency each state how much to keep"):
        prune(Channels(macs=0.5, latency=0.5))


def test_layers_go_until_the_latency_is_met():
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(400, 400), nn.Linear(400, 400)

        def forward(self, x):
            return x + self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(8, 400), nn.Sequential(*[Slow() for _ in range(8)]), nn.Linear(400, 4)).eval()
    pruned, about = prune(Layers(latency=0.6, method="influence"), deep)
    assert 2 <= len(pruned[1]) <= 6
    assert any(note.startswith("latency: 0.") for note in about.notes)

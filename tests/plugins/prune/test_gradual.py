"""prune gradual: the AGP schedule, in training and together with other stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdkit import Session
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import Trait, private_copy
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification
from kdkit.training import Step
from kdkit_prune.gradual import Gradual
from kdkit_prune.masks import mask_of
from kdkit_prune.weights import Weights


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def session(**extra: Any) -> Session:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    return Session(net(), train=(x, torch.arange(64) % 4), eval=(x, torch.arange(64) % 4), measures=("quality",), **extra)


def zeros(model: nn.Module) -> list[float]:
    return [float((layer.weight == 0).float().mean()) for layer in model.modules() if isinstance(layer, nn.Linear)]


def test_the_stage_is_valid():
    assert list(validate_stage(Gradual)) == []


@given(st.floats(0.05, 0.99), st.floats(0, 0.5), st.floats(0.51, 1), st.integers(1, 50), st.floats(0, 0.04), st.floats(0, 1), st.floats(0, 1))
def test_the_share_of_zeros_never_falls_and_ends_at_the_ratio(ratio, begin, end, cuts, start, one, other):
    stage = Gradual(ratio=ratio, begin=begin, end=end, cuts=cuts)
    first, second = sorted((one, other))
    assert start - 1e-9 <= stage.share_at(first, start) <= stage.share_at(second, start) + 1e-9
    assert stage.share_at(begin, start) == pytest.approx(start)
    assert stage.share_at(1.0, start) == pytest.approx(ratio)


def test_each_cut_is_the_cubic_of_the_paper():
    stage = Gradual(ratio=0.9, begin=0.1, end=0.6, cuts=5)
    for cut in range(6):
        expected = 0.9 + (0.2 - 0.9) * (1 - cut / 5) ** 3
        assert stage.share_at(0.1 + 0.5 * cut / 5 + 1e-6, 0.2) == pytest.approx(expected, abs=1e-6)


def test_training_ends_with_the_ratio_in_every_layer_and_masks_that_hold():
    work = session()
    work.run("prune gradual --ratio 0.75 --epochs 4 --batch-size 8")
    assert zeros(work.head.model) == pytest.approx([0.75, 0.75, 0.75], abs=0.01)
    assert Trait.MASKS_PENDING in work.head.traits
    for layer in (0, 2, 4):
        module = work.head.model[layer]
        assert bool((module.parametrizations.weight.original[~mask_of(module, "weight").keep] == 0).all())
    assert "zeros: 75.0% of 1,664 weights in 3 layers" in work.head.notes
    work.run("prune fold")
    assert zeros(work.head.model) == pytest.approx([0.75, 0.75, 0.75], abs=0.01)


def test_globally_the_smallest_weights_of_all_layers_go():
    work = session()
    work.run("prune gradual --ratio 0.5 --scope global --steps 20 --batch-size 8")
    shares = zeros(work.head.model)
    assert sum(share * size for share, size in zip(shares, (512, 1024, 128), strict=True)) / 1664 == pytest.approx(0.5, abs=0.01)
    assert max(shares) - min(shares) > 0.05


def test_weights_that_went_stay_away_as_the_schedule_goes_on():
    model = net()
    stage = Gradual(ratio=0.8, begin=0.0, end=1.0, cuts=4, loss=0.0)
    context = Context(Classification(), objects={"train": adopt_data([Batch((torch.randn(4, 16),))])})
    part = stage.part(stage.prepare(model, context), context)
    before: set[int] = set()
    for progress in (0.1, 0.3, 0.5, 0.8, 1.0):
        for weight in model.parameters():
            weight.data += 0.01 * torch.randn_like(weight)  # as an optimizer with momentum does, also behind the masks
        part.after_step(Step(Batch((torch.zeros(1, 16),)), None, model, Classification(), 0, progress))
        gone = set((model[0].weight == 0).flatten().nonzero().flatten().tolist())
        assert before <= gone
        before = gone
    assert len(before) == int(0.8 * 512)


def test_in_one_loop_with_distillation_it_needs_no_labels():
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    work = Session(net(), train=x, teacher=net(), task="classification", measures=())
    work.run("together:\n    distill soft --no-labels --steps 20 --batch-size 8\n    prune gradual --ratio 0.6 --loss 0")
    assert zeros(work.head.model) == pytest.approx([0.6, 0.6, 0.6], abs=0.02)


def test_it_goes_on_from_the_zeros_of_an_earlier_stage():
    work = session()
    work.run("prune weights --ratio 0.5")
    first = work.head.model[2].weight == 0
    work.run("prune gradual --ratio 0.8 --steps 20 --batch-size 8")
    assert bool((work.head.model[2].weight == 0)[first].all())
    assert zeros(work.head.model) == pytest.approx([0.8, 0.8, 0.8], abs=0.01)


def test_fewer_zeros_than_there_are_is_refused():
    model = Weights(ratio=0.9).apply(private_copy(net()), Context(Classification()))
    with pytest.raises(KdError, match=r"89\.\d% of the weights are zero already|90\.\d% of the weights are zero already"):
        Gradual(ratio=0.5).prepare(model, Context(Classification()))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("prune gradual --begin 0.8 --end 0.4", "--begin 0.8 is not before --end 0.4"),
        ("prune gradual --pattern 2:4", "N:M has no gradual form"),
        ("prune gradual --layers absent", "fits no"),
    ],
)
def test_schedules_patterns_and_layers_that_make_no_sense_are_refused(line, problem):
    with pytest.raises(KdError, match=problem):
        session().run(line)

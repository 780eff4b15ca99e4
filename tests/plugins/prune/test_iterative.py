"""prune iterative: rounds of cuts and training, and rewinding."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdkit import Session
from kdkit.errors import KdError
from kdkit.models import Trait
from kdkit.stages.validation import validate_stage
from kdkit_prune.iterative import Iterative
from kdkit_prune.masks import mask_of

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
LABELS = (X[:, :4].argmax(1)).long()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


def session() -> Session:
    return Session(net(), train=(X, LABELS), eval=(X, LABELS), measures=("quality",))


def zeros(model: nn.Module) -> list[float]:
    return [float((layer.weight == 0).float().mean()) for layer in model.modules() if isinstance(layer, nn.Linear)]


def test_the_stage_is_valid():
    assert list(validate_stage(Iterative)) == []


@given(st.floats(0.1, 0.99), st.integers(1, 12), st.floats(0, 0.09))
def test_each_round_leaves_the_same_share_and_the_last_the_ratio(ratio, rounds, before):
    shares = Iterative(ratio=ratio, rounds=rounds).shares(before)
    left = [1 - before, *(1 - share for share in shares)]
    factors = [now / then for then, now in itertools.pairwise(left)]
    assert shares[-1] == pytest.approx(ratio)
    assert factors == pytest.approx([factors[0]] * rounds)


def test_rounds_end_with_the_ratio_and_a_note_for_each():
    work = session()
    work.run("prune iterative --ratio 0.75 --rounds 2 --steps 3 --batch-size 16")
    assert zeros(work.head.model) == pytest.approx([0.75, 0.75], abs=0.01)
    assert Trait.MASKS_PENDING in work.head.traits
    assert [note[:12] for note in work.head.notes if note.startswith("zeros: ")] == ["zeros: 50.0%", "zeros: 75.0%"]


def test_the_weights_train_after_the_last_cut():
    work, cut = session(), session()
    work.run("prune iterative --ratio 0.5 --rounds 1 --steps 5 --batch-size 16")
    cut.run("prune weights --ratio 0.5")
    one, other = work.head.model[0], cut.head.model[0]
    assert torch.equal(one.weight == 0, other.weight == 0)
    assert not torch.allclose(one.weight, other.weight)


def test_a_rewound_ticket_is_chosen_by_trained_weights_and_starts_from_the_first_values(monkeypatch):
    starts = []
    train = Iterative.fit_with

    def watched(self, others, model, context):
        starts.append((model[0].weight.detach().clone(), model[1].running_mean.clone(), mask_of(model[0], "weight")))
        return train(self, others, model, context)

    monkeypatch.setattr(Iterative, "fit_with", watched)
    work = session()
    work.run("prune iterative --ratio 0.6 --rounds 2 --rewind --steps 30 --learning-rate 0.02 --batch-size 16")
    first = net()[0].weight.detach()
    assert len(starts) == 3
    assert torch.equal(starts[0][0], first)
    for weight, mean, _ in starts[1:]:
        assert torch.equal(weight, torch.where(weight != 0, first, 0.0))
        assert bool((mean == 0).all())
    by_first_values = first.abs() > first.abs().flatten().sort().values[int(0.6 * 512) - 1]
    assert not torch.equal(starts[2][0] != 0, by_first_values)
    assert zeros(work.head.model) == pytest.approx([0.6, 0.6], abs=0.01)


def test_more_zeros_than_the_ratio_are_refused():
    work = session()
    work.run("prune weights --ratio 0.9")
    with pytest.raises(KdError, match="so --ratio 0.5 changes nothing"):
        work.run("prune iterative --ratio 0.5 --steps 1")


def test_checkpoints_are_refused_before_any_work():
    with pytest.raises(KdError, match="are for one training"):
        session().run("prune iterative --checkpoint somewhere")

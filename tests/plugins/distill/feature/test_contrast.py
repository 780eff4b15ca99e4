"""distill contrast: the authors' memory and criterion written out, negatives, banks that follow, items without numbers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Data
from kdkit.errors import KdError
from kdkit.training import fit
from kdkit_distill.feature.contrast import Bank, Contrast, contrast, other_items
from tests.fixtures import zoo
from tests.fixtures.lessons import context, numbers, of_zoo, taught


def written_out(similarity: Tensor, z: float, items: int, temperature: float) -> list[float]:
    """The authors' criterion, a number at a time."""
    found = []
    for row in similarity.tolist():
        m, p = len(row) - 1, [math.exp(s / temperature) / z for s in row]
        noise = m / items
        found.append(-math.log(p[0] / (p[0] + noise)) - sum(math.log(noise / (other + noise)) for other in p[1:]))
    return found


class Memory(nn.Module):
    """The authors' memory, as they wrote it, for one step: `weight_v1[idx]` against v2 and the other way."""

    def __init__(self, bank: Bank, temperature: float, momentum: float):
        super().__init__()
        self.v1, self.v2, self.t, self.m, self.z = bank.of_student.clone(), bank.of_teacher.clone(), temperature, momentum, [-1.0, -1.0]

    def forward(self, v1: Tensor, v2: Tensor, y: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        size, items = len(v1), len(self.v1)
        out = []
        for side, (memory, anchor) in enumerate(((self.v2, v1), (self.v1, v2))):
            weight = memory[idx.view(-1)].view(size, idx.shape[1], v1.shape[1])
            scores = torch.exp(torch.bmm(weight, anchor.view(size, -1, 1)) / self.t)
            if self.z[side] < 0:
                self.z[side] = (scores.mean() * items).item()
            out.append((scores / self.z[side])[..., 0])
        for memory, seen in ((self.v1, v1), (self.v2, v2)):
            moved = memory[y] * self.m + seen * (1 - self.m)
            memory[y] = moved / moved.pow(2).sum(1, keepdim=True).pow(0.5)
        return out[0], out[1]


def criterion(x: Tensor, items: int) -> Tensor:
    """The authors', without their eps, one value an item."""
    m = x.shape[1] - 1
    positive = torch.log(x[:, 0] / (x[:, 0] + m / items))
    return -positive - torch.log((m / items) / (x[:, 1:] + m / items)).sum(1)


def test_it_is_the_criterion_written_out() -> None:
    similarity = numbers(5, 9).tanh()
    found = contrast(similarity, torch.tensor(2.5, dtype=torch.float64), 20, 0.07)
    assert found.tolist() == pytest.approx(written_out(similarity, math.exp(2.5), 20, 0.07), rel=1e-6)


def test_two_steps_are_the_authors_memory_and_criterion() -> None:
    torch.manual_seed(0)
    bank = Bank(6, 8, 30).double()
    memory = Memory(bank, 0.07, 0.5)
    for step in range(3):
        students, teachers, chosen = numbers(4, 6, seed=step), numbers(4, 8, seed=50 + step), torch.tensor([3, 7, 11, 29]) - step
        others = other_items(chosen, torch.full((30,), -1), 12, torch.Generator().manual_seed(step))
        one, two = bank.embedded(students, teachers)
        found = bank.compare(one, two, chosen, others, 0.07)
        bank.follow(one, two, chosen, 0.5)
        out = memory(one.detach(), two.detach(), chosen, torch.cat([chosen[:, None], others], 1))
        expected = criterion(out[0], 30) + criterion(out[1], 30)
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
        assert torch.allclose(bank.of_student, memory.v1)
        assert torch.allclose(bank.of_teacher, memory.v2)


def test_its_gradient_is_how_wrong_it_is_about_each_pair() -> None:
    similarity, z = numbers(3, 6).tanh().requires_grad_(), torch.tensor(1.0, dtype=torch.float64)
    contrast(similarity, z, 20, 0.5).sum().backward()
    p = (similarity.detach() / 0.5 - z).exp()
    h = p / (p + 5 / 20)
    expected = h / 0.5
    expected[:, 0] = -(1 - h[:, 0]) / 0.5
    assert torch.allclose(similarity.grad, expected)


def test_equal_features_still_cost_since_others_may_be_near() -> None:
    """There is no zero: h never reaches 0 or 1, and where all items look alike they can't be told apart."""
    alike, apart = torch.ones(1, 4, dtype=torch.float64), torch.tensor([[1.0, -1.0, -1.0, -1.0]], dtype=torch.float64)
    z = torch.tensor(0.0, dtype=torch.float64)
    assert contrast(alike, z, 4) > contrast(apart, z, 4) > 0


def test_extreme_temperatures_stay_finite() -> None:
    similarity = torch.tensor([[-1.0, 1.0, 1.0]], requires_grad=True)
    loss = contrast(similarity, torch.tensor(0.0), 10, 1e-4)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(similarity.grad).all()


# Negatives -----------------------------------------------------------------------------------------------------------


def test_negatives_are_all_of_other_classes_and_equally_often() -> None:
    classes = torch.tensor([2, 0, 1, 0, 2, 2, 1, -1, -1])
    chosen = torch.tensor([0, 1, 6, 7])
    drawn = other_items(chosen, classes, 20000, torch.Generator().manual_seed(0))
    for row, item in zip(drawn, chosen.tolist(), strict=True):
        allowed = [other for other in range(9) if other != item and (classes[item] < 0 or classes[other] != classes[item])]
        counts = torch.bincount(row, minlength=9)
        assert (counts > 0).nonzero().flatten().tolist() == allowed
        assert counts[allowed].tolist() == pytest.approx([20000 / len(allowed)] * len(allowed), rel=0.08)


def test_without_classes_any_other_item_is_drawn() -> None:
    drawn = other_items(torch.tensor([0, 3]), torch.full((4,), -1), 500, torch.Generator().manual_seed(0))
    assert [set(row.tolist()) for row in drawn] == [{1, 2, 3}, {0, 1, 2}]


def test_one_class_alone_is_separated_item_from_item() -> None:
    drawn = other_items(torch.tensor([0, 2]), torch.zeros(3, dtype=torch.long), 300, torch.Generator().manual_seed(0))
    assert [set(row.tolist()) for row in drawn] == [{1, 2}, {0, 1}]


# The stage -----------------------------------------------------------------------------------------------------------


def held(stage: Contrast, data: Data, student: nn.Module | None = None) -> Bank:
    """The bank of a training, after it."""
    made: list[Bank] = []

    class Watched(Contrast):
        def modules(self, features, context):  # type: ignore[no-untyped-def]
            found = super().modules(features, context)
            made.append(found["0"])
            return found

    fit(student or zoo.mlp(), [Watched(**stage.changed())], context(data, zoo.mlp()))
    return made[0]


def test_it_learns_classes_and_fills_its_banks_by_the_items_numbers() -> None:
    data = of_zoo("mlp")
    bank = held(Contrast(epochs=1, learning_rate=0.01), data)
    labels = torch.cat([batch.labels for batch in data.batches()])
    assert torch.equal(bank.classes, labels)
    assert torch.allclose(bank.of_student.norm(dim=1), torch.ones(32), atol=1e-5)
    assert torch.isfinite(bank.log_z).all()


@pytest.mark.slow
def test_both_embeddings_train_and_z_stays_that_of_the_first_batch() -> None:
    first, last = held(Contrast(steps=1), of_zoo("mlp")), held(Contrast(steps=8), of_zoo("mlp"))
    assert torch.equal(first.log_z, last.log_z)
    for name in ("embed_student", "embed_teacher"):
        assert not torch.equal(getattr(first, name).weight, getattr(last, name).weight)


def test_the_layers_before_the_heads_are_compared() -> None:
    run = context(of_zoo("cnn"), zoo.cnn())
    fit(zoo.depthwise(), [Contrast(steps=1)], run)
    assert "distill contrast compares project=pool" in run.notes


@pytest.mark.slow
def test_the_student_comes_to_know_items_by_the_teachers_features() -> None:
    reported = taught(Contrast(labels=False, epochs=30, learning_rate=0.01), zoo.depthwise(), context(of_zoo("cnn"), zoo.cnn()))
    assert reported[-1]["contrast"] < 0.9 * reported[0]["contrast"]


@pytest.mark.slow
def test_its_negatives_follow_from_seed_and_step() -> None:
    one, two = zoo.mlp(), zoo.mlp()
    figures = [taught(Contrast(steps=6, negatives=5), model, context(of_zoo("mlp"), zoo.mlp())) for model in (one, two)]
    assert figures[0] == figures[1]
    run = replace(context(of_zoo("mlp"), zoo.mlp()), seed=7)
    assert taught(Contrast(steps=6, negatives=5), copy.deepcopy(zoo.mlp()), run) != figures[0]


def test_a_stream_has_no_numbers_and_that_is_reported_before_training() -> None:
    batch = zoo.batch("mlp", 16)
    stream = Data(lambda: [(batch.args[0], batch.labels)], "a stream")
    with pytest.raises(KdError, match="the items of a stream have no numbers") as caught:
        fit(zoo.mlp(), [Contrast(steps=1)], context(stream, zoo.mlp()))
    assert "distill similarity" in str(caught.value)


@pytest.mark.slow
def test_text_is_pooled_over_real_tokens() -> None:
    from tests.fixtures.lessons import bert, sentences, weights

    made = []
    for padding in (0, 4):
        data = sentences(padding)
        items = [(batch := next(iter(data.batches())))[row : row + 1] for row in range(8)]
        rows = [{**{key: item[0] for key, item in row.kwargs.items()}, "labels": row.labels[0]} for row in items]
        model = bert(0)
        from kdkit.session.adoption import adopt_data

        fit(model, [Contrast(steps=2, layers=("bert.encoder.layer.1",), labels=False, batch_size=8)], context(adopt_data(rows, 8), bert(1)))
        made.append(weights(model))
        assert batch.size == 8
    assert torch.allclose(made[0], made[1], atol=1e-7)


def test_autocast_does_not_round_its_cosines() -> None:
    torch.manual_seed(0)
    bank = Bank(8, 8, 64)
    one, two = (torch.nn.functional.normalize(numbers(4, 128, seed=seed).float(), dim=-1) for seed in (1, 2))
    given = (one, two, torch.arange(4), torch.arange(4, 64).expand(4, -1), 0.07)
    plain = bank.compare(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bank.compare(*given), plain)

"""distill discriminator: its loss and the turned gradient by hand, features bridged, nothing of it in the student."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdkit.data import Batch, Data
from kdkit.errors import Cancelled, KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification, Regression, TokenClassification
from kdkit.training import fit
from kdkit_distill.scheme.discriminator import Discriminator, SignalDiscriminator, reversed_gradient, separation_loss
from tests.fixtures import zoo
from tests.fixtures.lessons import Tagger, points, weights


def net(seed: int, classes: int = 3, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, classes))


def context(data: Any = None, teacher: nn.Module | None = None, **objects: Any) -> Context:
    return Context(Classification(), objects={"train": adopt_data(points() if data is None else data, 16), "teacher": teacher or net(9, width=24), **objects})


# The objective -------------------------------------------------------------------------------------------------------


def test_it_is_the_binary_cross_entropy_of_both_written_out() -> None:
    student, teacher = (torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 for seed in range(2))
    expected = [(-math.log(1 - 1 / (1 + math.exp(-s))) - math.log(1 / (1 + math.exp(-t)))) / 2 for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert separation_loss(student, teacher).tolist() == pytest.approx(expected, rel=1e-6)


def test_who_can_not_tell_pays_log_two_and_identical_signals_can_not_be_separation_loss() -> None:
    score = torch.randn(5, dtype=torch.float64)
    assert torch.allclose(separation_loss(torch.zeros(5), torch.zeros(5)), torch.full((5,), math.log(2)))
    # not zero, as other objectives are: of equal scores none can make it less than log 2
    assert (separation_loss(score, score) >= math.log(2)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_scores_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    student = torch.tensor([1e4, -1e4]).to(dtype).requires_grad_()
    loss = separation_loss(student, -student.detach())
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()


def test_the_student_climbs_where_the_discriminator_descends() -> None:
    torch.manual_seed(0)
    discriminator, student, teacher = SignalDiscriminator(4, 4, 8).double(), torch.randn(6, 4).double().requires_grad_(), torch.randn(6, 4).double()
    (plain,) = torch.autograd.grad(separation_loss(*discriminator(student, teacher)).mean(), student)
    own, theirs = discriminator(reversed_gradient(student, 0.3), teacher)
    turned = torch.autograd.grad(separation_loss(own, theirs).mean(), [student, *discriminator.parameters()])
    straight = torch.autograd.grad(separation_loss(*discriminator(student, teacher)).mean(), list(discriminator.parameters()))
    assert torch.allclose(turned[0], -0.3 * plain, rtol=0, atol=1e-12)
    assert all(torch.allclose(*pair) for pair in zip(turned[1:], straight, strict=True))


def test_the_scale_of_a_signal_tells_nothing() -> None:
    torch.manual_seed(0)
    discriminator, signal = SignalDiscriminator(4, 4, 8), torch.randn(6, 4)
    assert torch.allclose(discriminator(signal, 5 * signal)[1], discriminator(signal, signal)[1], atol=1e-3)


# The stage -----------------------------------------------------------------------------------------------------------


def test_a_step_on_logits_equals_one_written_by_hand() -> None:
    x, y = points(16)
    student, teacher = net(0).double(), net(9).double().eval()
    student[3].p = 0.0
    mine, taken = copy.deepcopy(student).train(), []

    class Watched(Discriminator):
        """Remembers its discriminator as it began."""

        def extra_modules(self, *given: Any) -> nn.ModuleDict:
            made = super().extra_modules(*given)
            taken.append((made["logits"], copy.deepcopy(made["logits"])))
            return made

    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant", "steps": 1}
    fit(student, [Watched(signal="logits", alpha=0.6, reversal=0.5, **options)], context(Data(lambda: [Batch((x.double(),), labels=y)], "one", 16), teacher))
    (discriminator, begun), asked = taken[0], teacher(x.double()).detach()
    stated = mine(x.double())
    label, apart = nn.functional.cross_entropy(stated, y), separation_loss(*begun(stated, asked)).mean()
    of_label = torch.autograd.grad(label, list(mine.parameters()), retain_graph=True)
    of_deprecated = torch.autograd.grad(apart, [*mine.parameters(), *begun.scores.parameters()])
    for weight, first, second in zip(mine.parameters(), of_label, of_deprecated, strict=False):
        weight.data -= 0.1 * (0.4 * first - 0.6 * 0.5 * second)
    for weight, slope in zip(begun.scores.parameters(), of_deprecated[len(of_label) :], strict=True):
        weight.data -= 0.1 * 0.6 * slope
    assert torch.allclose(weights(student), weights(mine), rtol=0, atol=1e-6)
    assert torch.allclose(weights(discriminator), weights(begun), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"signal": "logits"}, {"layers": ("0",)}, {"layers": ("0", "2"), "alpha": 0.9}])
def test_the_student_holds_nothing_of_it_and_the_teacher_is_untouched(options: dict[str, Any]) -> None:
    teacher = net(9, width=24).train()
    before, run = weights(teacher), context(teacher=teacher)
    student = fit(net(0), [Discriminator(epochs=2, **options)], run)
    assert torch.equal(weights(teacher), before)
    assert teacher.training
    assert all(weight.requires_grad and weight.grad is None for weight in teacher.parameters())
    assert student.state_dict().keys() == net(0).state_dict().keys()
    assert any("discriminator_accuracy" in note for note in run.notes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cnn", "tiny_bert"])
def test_maps_and_tokens_are_pooled(kind: str) -> None:
    if kind == "tiny_bert":
        pytest.importorskip("transformers")
    model, teacher, batch = zoo.MODELS[kind](), zoo.MODELS[kind](), zoo.batch(kind, 16)
    before = weights(model)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.mul_(1.1)
    fit(model, [Discriminator(epochs=2, batch_size=8)], context(Data(lambda: [batch], "zoo", 16), teacher))
    assert not torch.equal(weights(model), before)


def test_it_can_be_beside_another_technique() -> None:
    from kdkit_distill.response.soft import Soft

    seen: list = []
    run = context()
    run.observe = seen.append
    fit(net(0), [Soft(also=("discriminator --weight 0.1",), epochs=1)], run)
    assert {"soft", "discriminator", "discriminator_accuracy"} <= set(seen[-1].figures)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["features", "logits"])
def test_four_small_batches_make_the_step_of_a_large_one(signal: str) -> None:
    x, y = points(16)
    found = []
    for cuts in (1, 4):
        torch.manual_seed(0)
        student, teacher = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(2))
        batches = [Batch((rows.double(),), labels=labels) for rows, labels in zip(x.chunk(cuts), y.chunk(cuts), strict=True)]
        data = Data(lambda batches=batches: batches, "cut", 16)
        stage = Discriminator(signal=signal, accumulate=4, steps=2, optimizer="sgd", learning_rate=0.3, layers=("1",) if signal == "features" else ())
        fit(student, [stage], context(data, teacher))
        found.append(weights(student))
    # the discriminator computes in float32
    assert torch.allclose(*found, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["features", "logits"])
def test_padding_changes_nothing(signal: str) -> None:
    tokens, mask = torch.randint(0, 20, (6, 5), generator=torch.Generator().manual_seed(0)), torch.arange(5)[None] < torch.tensor([5, 2, 3, 4, 1, 5])[:, None]
    found = []
    for more in (0, 3):
        batch = Batch(kwargs={"input_ids": nn.functional.pad(tokens, (0, more), value=7), "attention_mask": nn.functional.pad(mask.long(), (0, more))})
        run = Context(TokenClassification(), objects={"train": Data(lambda batch=batch: [batch], "tokens", 6), "teacher": Tagger(1)})
        student, layers = Tagger(0), ("embed",) if signal == "features" else ()
        fit(student, [Discriminator(signal=signal, labels=False, layers=layers, steps=3, optimizer="sgd", learning_rate=0.3)], run)
        found.append(weights(student))
    assert torch.allclose(*found, rtol=0, atol=1e-6)
    assert not torch.allclose(found[0], weights(Tagger(0)), atol=1e-5)


@pytest.mark.slow
def test_a_resumed_training_equals_one_that_was_never_interrupted(tmp_path: Path) -> None:
    whole = fit(net(0), [Discriminator(epochs=3)], context())
    broken = context()

    def stop(progress: Any) -> None:
        if progress.done >= 6:
            broken.cancelled.set()

    broken.observe = stop
    with pytest.raises(Cancelled):
        fit(net(0), [Discriminator(epochs=3, checkpoint=str(tmp_path))], broken)
    again = fit(net(0), [Discriminator(epochs=3, checkpoint=str(tmp_path), resume=True)], context())
    assert torch.equal(weights(whole), weights(again))


def test_unsuitable_tasks_and_logits_are_refused() -> None:
    assert Discriminator(signal="logits").incompatible_task(Regression())
    assert not Discriminator().incompatible_task(Regression())
    assert not list(validate_stage(Discriminator))
    with pytest.raises(KdError, match="logits have shape|classes"):
        fit(net(0), [Discriminator(signal="logits")], context(teacher=net(9, classes=5)))


@pytest.mark.slow
def test_a_discriminator_left_alone_tells_them_apart_and_a_fooled_one_does_not() -> None:
    found = []
    for reversal in (1e-6, 1.0):
        seen: list = []
        run = context(points(256), net(9, width=16).eval())
        run.observe = seen.append
        fit(net(0), [Discriminator(signal="features", layers=("0",), alpha=0.9, reversal=reversal, epochs=40, learning_rate=0.01)], run)
        found.append(sum(progress.figures["discriminator_accuracy"] for progress in seen[-8:]) / 8)
    assert found[0] > 0.9
    assert found[1] < found[0] - 0.15

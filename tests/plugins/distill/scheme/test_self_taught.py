"""distill self: an average, a snapshot and a virtual teacher, each against a loop written by hand; nothing of them in the student."""

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
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit.tasks import Classification, Regression
from kdkit.training import fit
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.self_taught import SelfTaught, Shadow, virtual_teacher
from tests.fixtures import zoo
from tests.fixtures.lessons import net, points, weights


def context(data: Any = None, **objects: Any) -> Context:
    return Context(Classification(), objects={"train": adopt_data(points() if data is None else data, 16), **objects})


def one_batch() -> Data:
    x, y = points(16)
    return Data(lambda: [Batch((x.double(),), labels=y)], "one batch", 16)


PLAIN: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "constant"}


# The virtual teacher -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_virtual_teachers_loss_is_the_formula_written_out(temperature: float) -> None:
    z = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = [0, 3, 1, 1, 2]
    found = soft_labels(z, virtual_teacher(torch.tensor(labels), 4, 0.97), temperature).tolist()
    for value, row, label in zip(found, z.tolist(), labels, strict=True):
        p = [0.97 if k == label else 0.01 for k in range(4)]
        p = [each ** (1 / temperature) for each in p]
        p = [each / sum(p) for each in p]
        q = [math.exp(each / temperature) for each in row]
        q = [each / sum(q) for each in q]
        assert value == pytest.approx(temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), rel=1e-5)


def test_at_temperature_one_it_is_label_smoothing_up_to_a_constant() -> None:
    z, labels = torch.randn(5, 4, dtype=torch.float64).requires_grad_(), torch.tensor([0, 3, 1, 1, 2])
    (mine,) = torch.autograd.grad(soft_labels(z, virtual_teacher(labels, 4, 0.925).double()).mean(), z)
    (smooth,) = torch.autograd.grad(nn.functional.cross_entropy(z, labels, label_smoothing=0.1), z)
    assert torch.allclose(mine, smooth, rtol=0, atol=1e-7)


def test_where_there_is_no_label_the_virtual_teacher_knows_nothing() -> None:
    assert torch.equal(virtual_teacher(torch.tensor([-100]), 4).exp(), torch.full((1, 4), 0.25))


def test_a_student_that_says_what_the_virtual_teacher_says_has_nothing_to_learn() -> None:
    student = virtual_teacher(torch.tensor([0, 2]), 4).requires_grad_()
    loss = soft_labels(student, student.detach().clone(), 5.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-6
    assert student.grad.abs().max() < 1e-6


def test_items_without_a_label_count_neither_for_labels_nor_for_the_virtual_teacher() -> None:
    x, y = points(16)
    mixed = torch.where(torch.arange(16) < 8, y, -100)
    seen: list = []
    run = context((x, mixed))
    run.observe = seen.append
    student = net(0)
    answers = copy.deepcopy(student).train()(x)[:8]
    fit(student, [SelfTaught(teacher_form="virtual", steps=1)], run)
    assert seen[0].figures["virtual"] == pytest.approx(soft_labels(answers, virtual_teacher(y[:8], 3), 4.0).mean().item(), rel=1e-5)


def test_labels_that_are_no_class_numbers_are_refused() -> None:
    x, y = points()
    with pytest.raises(KdError, match="class numbers"):
        fit(net(0), [SelfTaught(teacher_form="virtual")], context((x, nn.functional.one_hot(y, 3).float())))


# The shadow ----------------------------------------------------------------------------------------------------------


def test_the_shadow_is_an_exponential_average_of_weights_and_batch_norm_statistics() -> None:
    student = net(0)
    shadow = Shadow(student)
    old = [weight.detach().clone() for weight in student.parameters()]
    mean = student[1].running_mean.clone()
    with torch.no_grad():
        for tensor in (*student.parameters(), student[1].running_mean, student[1].running_var, student[1].num_batches_tracked):
            tensor.add_(1)
    shadow.follow(student, 0.75)
    assert all(torch.allclose(mine, before + 0.25) for mine, before in zip(shadow.model.parameters(), old, strict=True))
    assert torch.allclose(shadow.model[1].running_mean, mean + 0.25)
    assert shadow.model[1].num_batches_tracked == 1


def test_the_shadow_stays_in_eval_mode_and_out_of_the_optimizer() -> None:
    shadow = Shadow(net(0, dropout=0.5))
    shadow.train()
    assert not any(module.training for module in shadow.model.modules())
    assert not list(shadow.parameters())
    assert not any(weight.requires_grad for weight in shadow.model.parameters())


@pytest.mark.parametrize("kind", ["cnn", "lstm", "tiny_bert"])
def test_what_is_put_back_into_the_shadows_buffers_is_what_the_copy_says(kind: str) -> None:
    if kind == "tiny_bert":
        pytest.importorskip("transformers")
    model, other = zoo.MODELS[kind](), zoo.MODELS[kind]()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    shadow, source = Shadow(model), Shadow(other)
    with torch.no_grad():
        for mine, theirs in zip(shadow.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
    batch = zoo.batch(kind)
    task = Classification()
    with torch.no_grad():
        assert torch.equal(task.prediction(batch.call(shadow.model)), task.prediction(batch.call(other)))


# Against loops written by hand ---------------------------------------------------------------------------------------


def step_by_hand(model: nn.Module, teacher: nn.Module | None, optimizer: torch.optim.Optimizer, batch: Batch, alpha: float = 0.5) -> None:
    model.train()
    stated = model(batch.args[0])
    loss = nn.functional.cross_entropy(stated, batch.labels)
    if teacher is not None:
        with torch.no_grad():
            asked = teacher.eval()(batch.args[0])
        loss = (1 - alpha) * loss + alpha * soft_labels(stated, asked, 4.0).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_four_steps_with_an_average_equal_a_loop_written_by_hand() -> None:
    student, data = net(0).double(), one_batch()
    mine, teacher = copy.deepcopy(student), copy.deepcopy(student)
    fit(student, [SelfTaught(steps=4, momentum=0.6, **PLAIN)], context(data))
    optimizer = torch.optim.SGD(mine.parameters(), 0.1, momentum=0.9)
    for step in range(4):
        step_by_hand(mine, teacher, optimizer, data.example())
        momentum = min(0.6, 1 - 1 / (step + 1))
        with torch.no_grad():
            for old, new in zip(teacher.state_dict().values(), mine.state_dict().values(), strict=True):
                old.copy_(momentum * old + (1 - momentum) * new if old.is_floating_point() else new)
    assert torch.allclose(weights(student), weights(mine), rtol=0, atol=1e-9)


@pytest.mark.parametrize("period", [1, 2])
def test_snapshots_equal_a_loop_written_by_hand(period: int) -> None:
    student, data = net(0).double(), one_batch()
    mine, teacher = copy.deepcopy(student), None
    fit(student, [SelfTaught(teacher_form="snapshot", period=period, epochs=5, **PLAIN)], context(data))
    optimizer = torch.optim.SGD(mine.parameters(), 0.1, momentum=0.9)
    for epoch in range(1, 6):
        step_by_hand(mine, teacher, optimizer, data.example())
        if epoch % period == 0:
            teacher = copy.deepcopy(mine)
    assert torch.allclose(weights(student), weights(mine), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ema", "snapshot", "virtual"])
def test_a_resumed_training_equals_one_that_was_never_interrupted(form: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"teacher_form": form, "epochs": 3, "momentum": 0.7}
    whole = fit(net(0, dropout=0.2), [SelfTaught(**options)], context())
    broken = context()

    def stop(progress: Any) -> None:
        if progress.done >= 10:
            broken.cancelled.set()

    broken.observe = stop
    with pytest.raises(Cancelled):
        fit(net(0, dropout=0.2), [SelfTaught(checkpoint=str(tmp_path), **options)], broken)
    again = fit(net(0, dropout=0.2), [SelfTaught(checkpoint=str(tmp_path), resume=True, **options)], context())
    assert torch.equal(weights(whole), weights(again))


# The stage -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", ["ema", "snapshot", "virtual"])
@pytest.mark.parametrize("kind", ["cnn", "lstm"])
def test_nets_of_the_zoo_train_and_keep_nothing_of_their_teacher(form: str, kind: str) -> None:
    model, batch = zoo.MODELS[kind](), zoo.batch(kind, 16)
    before = weights(model)
    made = fit(model, [SelfTaught(teacher_form=form, epochs=2, batch_size=8)], context(Data(lambda: [batch], "zoo", 16)))
    assert not torch.equal(weights(made), before)
    assert made.state_dict().keys() == zoo.MODELS[kind]().state_dict().keys()
    assert all(weight.requires_grad and weight.grad is None for weight in made.parameters())


def test_other_techniques_can_learn_from_the_students_past_too() -> None:
    seen: list = []
    run = context()
    run.observe = seen.append
    fit(net(0), [SelfTaught(also=("soft --temperature 2",), epochs=2, momentum=0.5)], run)
    assert seen[-1].figures["soft"] > 0


def test_a_snapshot_that_never_taught_is_reported() -> None:
    run = context()
    fit(net(0), [SelfTaught(teacher_form="snapshot", epochs=1)], run)
    fit(net(0), [SelfTaught(teacher_form="ema", epochs=1)], run)
    assert sum("only labels were used" in note for note in run.notes) == 1


def test_it_needs_labels_and_no_teacher() -> None:
    assert SelfTaught().required_inputs() == Needs(train=True, labels=True)
    assert not [name for name, *_ in SelfTaught().named_objects() if name == "teacher"]
    assert any("labels" in line for line in SelfTaught(labels=False).conflicts())
    assert any("--teacher" in line for line in SelfTaught(teacher="big").conflicts())
    assert not list(SelfTaught().conflicts())
    with pytest.raises(KdError, match="needs labels"):
        fit(net(0), [SelfTaught()], context(points()[0]))


def test_a_cache_of_a_teacher_that_changes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KdError, match="can't be cached|changes"):
        fit(net(0), [SelfTaught(cache=str(tmp_path / "cache"))], context())


def test_it_is_valid_and_knows_its_tasks() -> None:
    assert not list(validate_stage(SelfTaught))
    assert SelfTaught().incompatible_task(Regression())


@pytest.mark.parametrize(("options", "refused"), [({}, True), ({"epochs": 2, "period": 2}, True), ({"epochs": 1.5}, False), ({"steps": 9}, False)])
def test_a_training_that_ends_with_its_first_snapshot_is_refused_before_it_begins(options: dict[str, Any], refused: bool) -> None:
    run, seen = context(), []
    run.observe = seen.append
    stage = SelfTaught(**{"teacher_form": "snapshot", **options})
    if refused:
        with pytest.raises(KdError, match=f"the first snapshot is taken after epoch {stage.period}"):
            stage.apply(net(0), run)
        assert not seen
    else:
        stage.apply(net(0), run)
        assert not any("only labels were used" in note for note in run.notes)

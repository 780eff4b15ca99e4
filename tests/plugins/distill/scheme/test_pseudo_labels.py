"""distill pseudo-labels: who is taught by whom, the threshold, a labelled set beside the unlabelled one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch, Data
from kdkit.errors import Cancelled, KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.stages.stage import Needs
from kdkit.stages.validation import validate_stage
from kdkit.tasks import CausalLM, Classification, Regression, Task, TokenClassification
from kdkit.training import fit
from kdkit_distill.scheme.pseudo_labels import Cycle, PseudoLabels, confident, pseudo_labels, unlabelled
from kdkit_tune.finetune import Finetune
from tests.fixtures.lessons import Tagger, logits, points, weights


def net(seed: int, classes: int = 3, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, classes))


def half_labelled(items: int = 64) -> tuple[Tensor, Tensor]:
    """Every fourth item has its label."""
    x, y = points(items)
    return x, torch.where(torch.arange(items) % 4 == 0, y, -100)


class Oracle(nn.Module):
    """Knows the classes, and is less sure of some items."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * 4


class CountingOracle(Oracle):
    """Counts how often it is asked."""

    asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return super().forward(x)


def context(data: Any = None, teacher: nn.Module | None = None, task: Task | None = None, **objects: Any) -> Context:
    train = data if isinstance(data, Data) else adopt_data(points() if data is None else data, 16)
    return Context(task or Classification(), objects={"train": train, "teacher": teacher or Oracle(), **objects}, original=net(50))


# The objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "temperature"), [("hard", 1.0), ("soft", 1.0), ("soft", 3.0)])
def test_it_is_the_formula_written_out(form: str, temperature: float) -> None:
    student, teacher = logits(40, 4), logits(40, 4, seed=1, spread=2.0)
    found = pseudo_labels(student, teacher, 0.7, form, temperature).tolist()
    passed = 0
    for value, z_s, z_t in zip(found, student.tolist(), teacher.tolist(), strict=True):
        sure = max(math.exp(z) for z in z_t) / sum(math.exp(z) for z in z_t)
        q, p = ([math.exp(z / temperature) / sum(math.exp(each / temperature) for each in row) for z in row] for row in (z_s, z_t))
        taught = -math.log(q[z_t.index(max(z_t))]) if form == "hard" else temperature**2 * sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
        assert value == pytest.approx(taught if sure >= 0.7 else 0.0, rel=1e-6, abs=1e-12)
        passed += sure >= 0.7
    assert 5 < passed < 35


def test_soft_labels_of_an_identical_teacher_cost_nothing_and_pull_nowhere() -> None:
    student = logits(5, 4).requires_grad_()
    loss = pseudo_labels(student, student.detach().clone(), 0.0, "soft", 2.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_hard_labels_of_an_identical_teacher_sharpen_it() -> None:
    student = logits(5, 4).requires_grad_()
    pseudo_labels(student, student.detach().clone(), 0.0).sum().backward()
    right = torch.nn.functional.one_hot(student.argmax(-1), 4)
    assert torch.allclose(student.grad, (student.softmax(-1) - right).detach(), atol=1e-12)


def test_where_the_teacher_is_unsure_there_is_no_gradient() -> None:
    student, teacher = logits(40, 4).requires_grad_(), logits(40, 4, seed=1, spread=2.0)
    pseudo_labels(student, teacher, 0.7).sum().backward()
    assert torch.equal(student.grad.abs().sum(-1) > 0, confident(teacher, 0.7))


@pytest.mark.parametrize("form", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_finite_losses_and_gradients(form: str, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4]]).to(dtype).requires_grad_()
    loss = pseudo_labels(student, -student.detach(), 0.4, form)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()


# What has no label ---------------------------------------------------------------------------------------------------


def test_items_without_labels_are_those_of_minus_a_hundred_or_all() -> None:
    batch = Batch((torch.zeros(3, 6),), labels=torch.tensor([1, -100, 2]))
    assert unlabelled(Classification(), batch).tolist() == [False, True, False]
    assert unlabelled(Classification(), replace(batch, labels=None)).all()
    assert not unlabelled(Classification(), replace(batch, labels=torch.zeros(3, 4))).any()


def test_tokens_are_without_a_label_where_their_whole_item_is_and_never_in_the_padding() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = Batch(kwargs={"input_ids": torch.ones(2, 3).long(), "attention_mask": mask}, labels=torch.tensor([[-100, -100, -100], [-100, 2, 1]]))
    assert unlabelled(TokenClassification(), batch).tolist() == [[True, True, False], [False, False, False]]
    assert unlabelled(TokenClassification(), replace(batch, labels=None)).tolist() == mask.bool().tolist()


# The stage -----------------------------------------------------------------------------------------------------------


def first_figures(stage: PseudoLabels, model: nn.Module, run: Context) -> dict[str, float]:
    seen: list = []
    run.observe = seen.append
    fit(model, [stage], run)
    return dict(seen[0].figures)


def test_labelled_items_learn_from_labels_and_the_others_from_the_teacher() -> None:
    x, y = half_labelled()
    student = net(0)
    student[2].p = 0.0
    answers, asked = copy.deepcopy(student)(x), Oracle()(x)
    found = first_figures(PseudoLabels(alpha=0.3, steps=1, batch_size=64, threshold=0.8), student, context((x, y)))
    label = nn.functional.cross_entropy(answers, y).item()
    bare = y == -100
    pseudo = (nn.functional.cross_entropy(answers, asked.argmax(1), reduction="none") * (asked.softmax(1).amax(1) >= 0.8))[bare].mean().item()
    assert found["label"] == pytest.approx(label, rel=1e-5)
    assert found["pseudo"] == pytest.approx(pseudo, rel=1e-5)
    assert found["loss"] == pytest.approx(0.7 * label + 0.3 * pseudo, rel=1e-5)


def test_data_without_labels_is_taught_by_the_teacher_alone() -> None:
    found = first_figures(PseudoLabels(steps=1, threshold=0.5), net(0), context(points()[0]))
    assert set(found) == {"pseudo", "loss", "learning_rate"}
    assert PseudoLabels().required_inputs() == Needs(train=True, teacher=True)


def test_no_labels_treats_every_item_as_unlabelled() -> None:
    found = []
    for data in (points(), points()[0]):
        student = net(0)
        fit(student, [PseudoLabels(labels=False, epochs=2)], context(data))
        found.append(weights(student))
    assert torch.equal(*found)


def test_the_notes_tell_how_many_passed_the_threshold() -> None:
    x, y = half_labelled()
    run = context((x, y))
    fit(net(0), [PseudoLabels(threshold=0.8, epochs=2)], run)
    bare = y == -100
    passed = int((confident(Oracle()(x), 0.8) & bare).sum())
    note = next(note for note in run.notes if "threshold" in note)
    assert f"{2 * passed} of {2 * int(bare.sum())}" in note


def test_data_whose_items_all_have_a_label_is_refused_before_anybody_is_asked() -> None:
    teacher = CountingOracle()
    with pytest.raises(KdError, match="all items of train have a label") as caught:
        fit(net(0), [PseudoLabels(steps=1)], context(points(), teacher, few=adopt_data(points(8), 8)))
    assert teacher.asked == 0
    assert any("--no-labels" in hint for hint in caught.value.hints)
    with pytest.raises(KdError, match="all items of train have a label"):
        fit(net(0), [PseudoLabels(steps=1, labelled="few")], context(points(), few=adopt_data(points(8), 8)))


def test_one_item_without_a_label_at_the_end_of_the_data_is_enough() -> None:
    x, y = points()
    run = context((x, torch.cat([y[:-1], torch.tensor([-100])])))
    fit(net(0), [PseudoLabels(threshold=0.0)], run)
    assert any("1 of 1 (100%)" in note for note in run.notes)


def test_of_a_stream_without_end_no_more_is_looked_at_than_is_trained_on() -> None:
    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield points(8)

    with pytest.raises(KdError, match="all items of train have a label"):
        fit(net(0), [PseudoLabels(steps=3)], context(Data(endless, "a stream")))


def test_a_teacher_that_is_sure_of_nothing_is_reported_after_an_epoch_with_a_threshold_that_would_do() -> None:
    class Timid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.1 * x[:, :3]

    x = points()[0]
    surest = float((0.1 * x[:, :3]).softmax(1).max())
    run, seen = context(x, Timid()), []
    run.observe = seen.append
    with pytest.raises(KdError, match=f"any of 64 unlabelled items: the highest probability is {surest:.2g}") as caught:
        fit(net(0), [PseudoLabels(epochs=3)], run)
    assert max((each.done for each in seen), default=0) <= 4
    lower = float(caught.value.hints[0].split()[1])
    fit(net(0), [PseudoLabels(epochs=1, threshold=lower)], context(x, Timid()))


@pytest.mark.parametrize("sizes", [[5, 27], [8, 8, 8, 8]])
def test_the_cut_of_a_step_into_batches_changes_nothing(sizes: list[int]) -> None:
    x, y = half_labelled(32)
    found = []
    for cut in ([32], sizes):
        student = net(0).double()
        student[2].p = 0.0
        batches = [Batch((rows.double(),), labels=labels) for rows, labels in zip(x.split(cut), y.split(cut), strict=True)]
        data, beside = Data(lambda batches=batches: batches, "cut", 32), Data(lambda: [Batch((points(4, 5)[0].double(),), labels=points(4, 5)[1])], "beside", 4)
        stage = PseudoLabels(labelled="few", accumulate=4, steps=3, optimizer="sgd", learning_rate=0.3, threshold=0.8)
        fit(student, [stage], context(data, few=beside))
        found.append(weights(student))
    assert torch.allclose(*found, rtol=0, atol=1e-9)


def test_padding_changes_nothing() -> None:
    tokens, mask = torch.randint(0, 20, (6, 5), generator=torch.Generator().manual_seed(0)), torch.arange(5)[None] < torch.tensor([5, 2, 3, 4, 1, 5])[:, None]
    found = []
    for more in (0, 3):
        batch = Batch(kwargs={"input_ids": nn.functional.pad(tokens, (0, more), value=7), "attention_mask": nn.functional.pad(mask.long(), (0, more))})
        student = Tagger(0)
        fit(student, [PseudoLabels(threshold=0.3, steps=3)], context(Data(lambda batch=batch: [batch], "tokens", 6), Tagger(1), TokenClassification()))
        found.append(weights(student))
    assert torch.allclose(*found, rtol=0, atol=1e-12)
    assert not torch.allclose(found[0], weights(Tagger(0)))


# A labelled set beside it --------------------------------------------------------------------------------------------


def test_which_labelled_batch_comes_follows_from_the_step_alone() -> None:
    data = adopt_data(points(20), 6)
    straight, jumping = Cycle(data, 3, None), Cycle(data, 3, None)
    order = [straight.at(step).labels.tolist() for step in range(10)]
    assert [jumping.at(step).labels.tolist() for step in (7, 7, 8, 2, 9, 0)] == [order[step] for step in (7, 7, 8, 2, 9, 0)]
    assert sorted(label for labels in order[:4] for label in labels) == sorted(points(20)[1].tolist())
    assert order[0:4] != order[4:8]


def test_the_labelled_sets_augmentation_draws_from_no_generator_of_the_training() -> None:
    noisy = Data(lambda: [(torch.rand(2, 1), torch.zeros(2)) for _ in range(3)], "noise")
    cycle, random = Cycle(noisy, 0, None), torch.get_rng_state()
    drawn = [cycle.at(step).args[0] for step in range(5)]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(Cycle(noisy, 0, None).at(4).args[0], drawn[4])


def test_each_step_takes_a_batch_of_the_labelled_set_too() -> None:
    student = net(0)
    student[2].p = 0.0
    few = Data(lambda: [points(8, 7)], "few", 8)
    label = nn.functional.cross_entropy(copy.deepcopy(student)(points(8, 7)[0]), points(8, 7)[1]).item()
    found = first_figures(PseudoLabels(labelled="few", steps=1, alpha=0.4), student, context(points()[0], few=few))
    assert found["labelled"] == pytest.approx(label, rel=1e-5)
    assert found["loss"] == pytest.approx(0.6 * label + 0.4 * found["pseudo"], rel=1e-5)


def test_a_resumed_training_equals_one_that_was_never_interrupted(tmp_path: Path) -> None:
    def run() -> Context:
        return context(points()[0], few=adopt_data(points(10, 7), 3))

    def stage(**options: Any) -> PseudoLabels:
        return PseudoLabels(labelled="few", epochs=3, threshold=0.8, checkpoint=str(tmp_path), **options)

    whole, whole_run = net(0), run()
    fit(whole, [PseudoLabels(labelled="few", epochs=3, threshold=0.8)], whole_run)
    broken = run()

    def stop(progress: Any) -> None:
        if progress.done >= 6:
            broken.cancelled.set()

    broken.observe = stop
    with pytest.raises(Cancelled):
        fit(net(0), [stage()], broken)
    again, again_run = net(0), run()
    fit(again, [stage(resume=True)], again_run)
    assert torch.equal(weights(whole), weights(again))
    assert [note for note in whole_run.notes if "threshold" in note] == [note for note in again_run.notes if "threshold" in note]


def test_labelled_data_without_labels_or_without_a_share_is_refused() -> None:
    with pytest.raises(KdError, match="few has no labels"):
        fit(net(0), [PseudoLabels(labelled="few")], context(points()[0], few=adopt_data(points(8)[0], 4)))
    with pytest.raises(KdError, match="'few'"):
        fit(net(0), [PseudoLabels(labelled="few")], context(points()[0]))
    assert any("no share" in line for line in PseudoLabels(labelled="few", labels=False).conflicts())


def test_tasks_where_nothing_is_unlabelled_are_refused() -> None:
    assert "language model" in PseudoLabels().incompatible_task(CausalLM())
    assert PseudoLabels().incompatible_task(Regression())
    assert not PseudoLabels().incompatible_task(Classification())
    assert not list(validate_stage(PseudoLabels))


def test_the_teacher_is_untouched_and_the_student_holds_nothing_new() -> None:
    teacher = net(3).train()
    before = weights(teacher)
    student = fit(net(0), [PseudoLabels(epochs=2, threshold=0.4)], context(half_labelled(), teacher))
    assert torch.equal(weights(teacher), before)
    assert teacher.training
    assert all(weight.grad is None and weight.requires_grad for weight in teacher.parameters())
    assert student.state_dict().keys() == net(0).state_dict().keys()


@pytest.mark.slow
def test_a_teachers_labels_beat_few_labels_alone() -> None:
    x, y = points(512)
    few = torch.where(torch.arange(512) < 12, y, -100)
    options: dict[str, Any] = {"steps": 100, "learning_rate": 0.02, "batch_size": 32}
    alone = fit(net(0), [Finetune(**options)], context((x[:12], y[:12])))
    taught = fit(net(0), [PseudoLabels(**options)], context((x, few)))
    test = points(512, 9)
    right = [(model.eval()(test[0]).argmax(1) == test[1]).float().mean().item() for model in (alone, taught)]
    assert right[1] > right[0] + 0.1

"""distill assistant: the teacher's knowledge goes to the student through nets of sizes between."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import kdkit
from kdkit.errors import Cancelled, KdError
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification, Regression
from kdkit.training import fit
from kdkit_distill.evaluation import figure
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.assistant import Assistant
from tests.fixtures import lessons
from tests.fixtures.lessons import points, weights

net = partial(lessons.net, dropout=0.1)


def context(teacher: nn.Module | None = None, **objects: Any) -> Context:
    held = {"train": adopt_data(points(), 16), "eval": adopt_data(points(seed=2), 16), "teacher": teacher, **objects}
    return Context(Classification(), seed=5, objects=held, original=net(50).eval())


@pytest.mark.slow
def test_it_is_distillation_from_each_to_the_next() -> None:
    big, middle, teacher = net(3, 24), net(4, 12), net(1, 32).eval()
    run = context(teacher, big=big, middle=middle)
    made = Assistant(through=("big", "middle"), epochs=2).apply(net(0, 8), run)
    one = fit(copy.deepcopy(big), [Soft(epochs=2, temperature=4.0)], context(teacher))
    two = fit(copy.deepcopy(middle), [Soft(epochs=2, temperature=4.0)], context(one))
    student = fit(net(0, 8), [Soft(epochs=2, temperature=4.0)], context(two))
    assert made is not None
    assert torch.equal(weights(made), weights(student))
    reported = next(note for note in run.notes if note.startswith("accuracy:"))
    for name, each in (("assistant big", one), ("assistant middle", two), ("the student", student)):
        assert f"{name} {figure([each], run.data('eval'), run):.4g}" in reported


@pytest.mark.slow
def test_teacher_and_assistants_given_are_as_before() -> None:
    big, teacher = net(3, 24).train(), net(1, 32).train()
    kept = weights(big), weights(teacher)
    Assistant(through=("big",)).apply(net(0), context(teacher, big=big))
    assert torch.equal(weights(big), kept[0])
    assert torch.equal(weights(teacher), kept[1])
    assert teacher.training
    assert big.training


@pytest.mark.slow
def test_with_a_student_of_ones_own_the_model_at_hand_is_the_first_teacher() -> None:
    current, small = net(2, 32).eval(), net(7, 4)
    made = Assistant(through=("narrow=0.5",), student="small").apply(current, context(small=small))
    given = Assistant(through=("narrow=0.5",)).apply(copy.deepcopy(small), context(copy.deepcopy(current)))
    assert made is not None
    assert given is not None
    assert torch.equal(weights(made), weights(given))


@pytest.mark.slow
def test_progress_names_each_and_only_grows() -> None:
    run, seen = context(net(1, 32)), []
    run.observe = seen.append
    Assistant(through=("narrow=0.75", "narrow=0.5")).apply(net(0, 8), run)
    names = list(dict.fromkeys(progress.text.partition(":")[0] for progress in seen))
    assert names == ["assistant narrow=0.75, 1 of 3", "assistant narrow=0.5, 2 of 3", "the student, 3 of 3"]
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total


@pytest.mark.slow
def test_all_is_intact_after_a_cancel() -> None:
    teacher, student = net(1, 32), net(0)
    kept = weights(teacher), weights(student)
    run = context(teacher)
    run.observe = lambda progress: run.cancelled.set() if progress.text.startswith("the student") else None
    with pytest.raises(Cancelled):
        Assistant(through=("narrow=0.5",)).apply(student, run)
    assert torch.equal(weights(teacher), kept[0])
    assert set(run.objects) == {"train", "eval", "teacher"}


def test_it_wants_at_least_one_assistant_that_there_is() -> None:
    with pytest.raises(KdError, match="through"):
        kdkit.pipelines.pipeline.Pipeline.from_lines("distill assistant")
    assert any("distill soft" in line for line in Assistant(through=()).check(net(0), context(net(1))))
    with pytest.raises(KdError, match="no student 'squeezenets'"):
        list(Assistant(through=("squeezenets",)).check(net(0), context(net(1))))


def test_a_checkpoint_is_refused_and_so_is_a_task_without_classes() -> None:
    assert any("several" in line for line in Assistant(through=("narrow=0.5",), checkpoint="folder").check(net(0), context(net(1))))
    numbers = Context(Regression(), objects=context(net(1)).objects)
    assert any("compares classes" in line for line in Assistant(through=("narrow=0.5",)).check(net(0), numbers))


def test_only_names_are_looked_up_among_the_sessions_objects() -> None:
    stage = Assistant(through=("big", "layers=0", "mobilenet-v2=0.5"))
    assert [each for each in stage.named_objects() if each[0] == "through"] == [("through", "model", "big")]


@pytest.mark.slow
def test_in_a_session_it_is_one_version_and_can_be_compared_with_a_control() -> None:
    session = kdkit.Session(net(0, 32), train=points(), eval=points(seed=2), measures=("quality", "parameters"))
    made = session.run("distill assistant --through narrow=0.75 narrow=0.5 --student narrow=0.25")
    assert len(session.versions) == 2
    assert made["parameters"] == session.plan("distill assistant --through narrow=0.5 --student narrow=0.25", on="@base").steps[-1].parameters
    assert "--through narrow=0.75 narrow=0.5" in made.stage.line()
    found = kdkit.compare_with(session, "distill soft --student narrow=0.25 --alpha 0", seeds=1)
    assert found.compared[0].figure == made["accuracy"]
    assert found.reference == ("teacher", session.versions[0]["accuracy"])


@pytest.mark.slow
def test_a_cache_keeps_the_teachers_answers_and_the_student_does_without(tmp_path: Any) -> None:
    teacher = net(1)
    cached, plain = (
        Assistant(through=("between",), epochs=1, cache=cache).train(net(2), context(teacher, between=net(3))) for cache in (str(tmp_path / "teacher.kd"), None)
    )
    assert torch.equal(weights(cached), weights(plain))

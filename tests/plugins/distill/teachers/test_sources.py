"""Live teachers: asked once a step however many stages ask, models or functions, recognised another time."""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.session.adoption import adopt_data
from kdkit.session.session import Session
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit.training import fit
from kdkit_distill.feature.contrast import Contrast
from kdkit_distill.feature.hints import Hints
from kdkit_distill.relation.similarity import Similarity
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.discriminator import Discriminator
from kdkit_distill.teachers.sources import ModelSource, _SharedTeacher, model_hash
from tests.fixtures import zoo
from tests.fixtures.lessons import CountingTeacher, weights


class Listening(Soft):
    """Soft, and looks at a layer."""

    id = "distill.listening"
    layer: str = "first"

    def pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple:
        from kdkit_distill.signals import Pair

        return (Pair(self.layer, self.layer),)

    def terms(self, seen: Any) -> Any:
        from kdkit.training import Term

        for _, student, teacher in seen.features():
            yield Term("layer", (student - teacher).square().mean(-1))


def points(items: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.randn(items, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(items) % 4


def run(teacher: Any, **objects: Any) -> Context:
    return Context(Classification(), objects={"train": adopt_data(points(), 8), "teacher": teacher, **objects})


# One teacher, several stages


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}])
def test_two_stages_with_one_teacher_ask_it_once_a_batch(options: dict[str, Any]) -> None:
    alone, both = CountingTeacher(), CountingTeacher()
    fit(zoo.mlp(), [Soft(epochs=2, **options)], run(alone))
    fit(zoo.mlp(), [Soft(epochs=2, **options), Soft(epochs=2, temperature=1.0, **options)], run(both))
    assert alone._asked == 1 + 10  # a probe, and each batch
    assert both._asked == 2 + 10


def test_each_of_them_sees_its_own_layers() -> None:
    teacher, together, apart = CountingTeacher(), zoo.mlp(), zoo.mlp()
    stages = [Listening(labels=False, optimizer="sgd"), Listening(labels=False, optimizer="sgd", layer="second")]
    fit(together, stages, run(teacher))
    stages[1] = stages[1].model_copy(update={"teacher": "other"})
    fit(apart, stages, run(teacher, other=copy.deepcopy(teacher)))
    assert torch.equal(weights(together), weights(apart))


def test_two_teachers_are_both_asked() -> None:
    one, other = CountingTeacher(), CountingTeacher(4)
    fit(zoo.mlp(), [Soft(labels=False), Soft(labels=False, teacher="other")], run(one, other=other))
    assert (one._asked, other._asked) == (6, 6)


def test_a_teacher_shared_is_as_before_whoever_leaves_first() -> None:
    teacher = CountingTeacher().train()
    teacher.first.weight.requires_grad_(False)
    before = [module.training for module in teacher.modules()], [weight.requires_grad for weight in teacher.parameters()], weights(teacher)
    for order in (slice(None), slice(None, None, -1)):
        lives = [ModelSource("teacher", run(teacher)) for _ in range(2)]
        for live in lives:
            live.open(torch.device("cpu"), ("first",))
        assert not teacher.training
        for live in lives[order]:
            live.close()
        assert [module.training for module in teacher.modules()] == before[0]
        assert [weight.requires_grad for weight in teacher.parameters()] == before[1]
        assert torch.equal(weights(teacher), before[2])
        assert not teacher.first._forward_hooks


@pytest.mark.slow
def test_nothing_is_left_behind_after_a_training_that_failed() -> None:
    class Failing(CountingTeacher):
        def forward(self, x: Tensor) -> Tensor:
            if self._asked > 2:
                raise RuntimeError("out of breath")
            return super().forward(x)

    teacher = Failing().train()
    with pytest.raises(KdError, match="the teacher, Failing, fails on a batch: RuntimeError: out of breath"):
        fit(zoo.mlp(), [Soft(), Soft()], run(teacher))
    gc.collect()
    assert teacher.training
    assert not _SharedTeacher.of_threads


def test_an_equal_batch_that_is_another_object_is_asked_about_again() -> None:
    teacher, context = CountingTeacher(), run(None)
    context.objects = {**context.objects, "teacher": teacher}
    lives = [ModelSource("teacher", context) for _ in range(2)]
    for live in lives:
        live.open(torch.device("cpu"))
    batch = Batch((torch.zeros(2, 16),))
    for each in (batch, batch, Batch((torch.ones(2, 16),)), batch):
        assert torch.equal(lives[0].signal(each).logits, lives[1].signal(each).logits)
    assert teacher._asked == 3
    for live in lives:
        live.close()


def test_whoever_is_done_with_a_teacher_leaves_it_to_the_others() -> None:
    teacher, context = CountingTeacher().train(), run(None)
    context.objects = {**context.objects, "teacher": teacher}
    one, other = (ModelSource("teacher", context) for _ in range(2))
    for live in (one, other):
        live.open(torch.device("cpu"), ["first"])
    one.close()
    assert not teacher.training
    assert other.signal(Batch((torch.zeros(2, 16),))).features["first"].shape[0] == 2
    other.close()
    assert teacher.training
    assert not _SharedTeacher.of_threads


def test_each_thread_has_its_own_way_of_asking_a_teacher() -> None:
    teacher, context = CountingTeacher(), run(None)
    context.objects = {**context.objects, "teacher": teacher}
    made, both = [], threading.Barrier(2)

    def ask() -> None:
        made.append(_SharedTeacher.of("teacher", context))
        # a thread that has ended may lend its number to the next
        both.wait(60)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] is not made[1]
    for asked in made:
        asked.held.close()


def test_a_teacher_is_asked_on_another_device_as_a_copy() -> None:
    teacher, context = CountingTeacher(), run(None)
    context.objects = {**context.objects, "teacher": teacher}
    live = ModelSource("teacher", context)
    live.open(torch.device("meta"), ["first"])
    assert live.signal(Batch((torch.zeros(2, 16, device="meta"),))).features["first"].is_meta
    assert not any(weight.is_meta for weight in teacher.parameters())
    live.close()


# Functions


def test_no_gradient_reaches_a_model_that_a_function_asks() -> None:
    hidden = zoo.mlp()
    before = weights(hidden)
    student = zoo.mlp()
    context = run(lambda x: hidden(x))
    live = ModelSource("teacher", context)
    live.open(torch.device("cpu"))
    assert not live.signal(Batch((torch.zeros(2, 16),))).logits.requires_grad
    live.close()
    fit(student, [Soft(divergence="reverse")], context)
    assert all(weight.grad is None and weight.requires_grad for weight in hidden.parameters())
    assert torch.equal(weights(hidden), before)


@pytest.mark.parametrize("stage", [Hints(), Similarity(), Contrast(), Discriminator()])
def test_a_technique_that_compares_layers_says_that_a_function_has_none(stage: Any) -> None:
    with pytest.raises(KdError, match=f"{stage.title} compares layers, and the teacher teacher is a function"):
        fit(zoo.mlp(), [stage], run(answers))
    fit(zoo.mlp(), [Discriminator(signal="logits", steps=1)], run(answers))


def test_a_teacher_that_can_not_take_the_inputs_is_named_with_what_it_was_given() -> None:
    for stage in (Soft(), Hints(), Similarity()):
        with pytest.raises(KdError, match="Sequential,? fails on a batch") as caught:
            fit(zoo.mlp(), [stage], run(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 4))))
        assert any("float32 (8, 16)" in hint for hint in caught.value.hints)


@pytest.mark.parametrize("answer", [torch.nan, torch.inf])
def test_a_teacher_that_answers_with_nan_or_infinity_is_found_before_training(answer: float) -> None:
    context, seen = run(lambda x: answers(x) * answer), []
    context.observe = seen.append
    with pytest.raises(KdError, match="the teacher's output is nan or infinite"):
        fit(zoo.mlp(), [Soft()], context)
    assert not seen


def test_a_teacher_that_rules_out_every_class_of_an_item_is_found_and_one_that_rules_out_some_is_not() -> None:
    def but(item: int, kept: int) -> Any:
        return lambda x: answers(x).index_put((torch.tensor([item]), torch.arange(kept, 4)), torch.tensor(-torch.inf))

    fit(zoo.mlp(), [Soft()], run(but(0, 2)))
    with pytest.raises(KdError, match="nan or infinite"):
        fit(zoo.mlp(), [Soft()], run(but(0, 0)))


def test_what_is_wrong_with_a_later_answer_is_reported_with_the_loss() -> None:
    calls = iter(range(99))
    with pytest.raises(KdError, match="not finite") as caught:
        fit(zoo.mlp(), [Soft()], run(lambda x: answers(x) * (torch.inf if next(calls) == 3 else 1.0)))
    assert caught.value.hints[0].startswith("the teacher's output was nan or infinite")


def answers(x: Tensor) -> Tensor:
    return x[:, :4] * 3


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return answers(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ask", [answers, lambda x: answers(x).numpy(), lambda x: answers(x).tolist(), lambda x: {"logits": answers(x)}, lambda x: answers(x).numpy().astype(np.float64)]
)
def test_a_function_teaches_like_a_model(ask: Any) -> None:
    reported, asked = fit(zoo.mlp(), [Soft()], run(Plain())), fit(zoo.mlp(), [Soft()], run(ask))
    assert torch.equal(weights(reported), weights(asked))


@pytest.mark.slow
def test_a_session_takes_a_function_for_a_teacher() -> None:
    x, y = points()
    session = Session(zoo.mlp(), train=(x, y), eval=(x, y), teacher=answers)
    version = session.run(Soft(labels=False, epochs=20, learning_rate=0.01))
    made = version.model if hasattr(version, "model") else session.model
    assert (made(x).argmax(1) == answers(x).argmax(1)).float().mean() > 0.5


def test_a_function_is_called_with_the_inputs_by_name() -> None:
    seen: list = []

    def ask(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen.append(tuple(input_ids.shape))
        return torch.zeros(len(input_ids), 2)

    batch = zoo.batch("tiny_bert")
    fit(zoo.tiny_bert(), [Soft(labels=False)], Context(Classification(), objects={"train": adopt_data(batch, 4), "teacher": ask}))
    assert seen[0] == (4, 12)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda x: 1 / 0, "the teacher, a function, failed: ZeroDivisionError"),
        (lambda x: None, "the teacher, a function, gave"),
        (lambda x: "yes", "the teacher, a function, gave: text"),
        (lambda x: x[:2, :4], r"gave \(2, 4\) for 8 items"),
        (lambda x: 3.0, "for 8 items"),
        (lambda x: x[:, :5], "the teacher has 5 classes, the student 4"),
    ],
)
def test_what_a_function_does_wrong_names_the_teacher(ask: Any, message: str) -> None:
    with pytest.raises(KdError, match=message) as caught:
        fit(zoo.mlp(), [Soft()], run(ask))
    assert caught.value.hints


def test_a_function_of_another_name_is_called_by_it() -> None:
    with pytest.raises(KdError, match="the teacher far, a function, failed"):
        fit(zoo.mlp(), [Soft(teacher="far")], run(None, far=lambda x: 1 / 0))


@pytest.mark.parametrize("given", [CountingTeacher, 7, "teacher"])
def test_what_can_not_be_asked_is_refused(given: Any) -> None:
    with pytest.raises(KdError, match="--teacher: .* is not a model"):
        Session(zoo.mlp(), teacher=given)


# Identity


def identity(teacher: Any) -> str:
    live = ModelSource("teacher", run(teacher))
    try:
        return live.identity()
    finally:
        live.close()


def test_a_copy_is_the_same_teacher_and_another_state_is_not() -> None:
    teacher = CountingTeacher()
    same, other = copy.deepcopy(teacher).train(), copy.deepcopy(teacher)
    same._asked = 9
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    assert identity(same) == identity(teacher)
    assert identity(other) != identity(teacher)


def test_code_that_weights_do_not_show_is_part_of_a_teacher() -> None:
    layers = [nn.Linear(2, 2), nn.ReLU()]
    plain, changed = nn.Sequential(*layers), nn.Sequential(layers[0], nn.Tanh())
    assert model_hash(plain) != model_hash(changed)
    assert model_hash(zoo.tiny_bert()) == model_hash(zoo.tiny_bert())


def test_a_function_is_recognised_by_the_name_it_is_given(tmp_path: Any) -> None:
    def ask(x: Tensor) -> Tensor:
        return answers(x)

    with pytest.raises(KdError, match="is a function, so kdkit can't check") as caught:
        fit(zoo.mlp(), [Soft(cache=str(tmp_path / "answers"))], run(ask))
    assert 'ask.kdkit_identity = "name and version"' in str(caught.value)
    ask.kdkit_identity = "far 1"
    fit(zoo.mlp(), [Soft(cache=str(tmp_path / "answers"))], run(ask))
    ask.kdkit_identity = "far 2"
    with pytest.raises(KdError, match="is of another teacher"):
        fit(zoo.mlp(), [Soft(cache=str(tmp_path / "answers"))], run(ask))


class Scaled(nn.Module):
    def __init__(self, scale: float, stride: int = 1):
        super().__init__()
        self.scale, self.pool = scale, nn.AvgPool1d(2, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.pool(x)


def test_a_model_is_recognised_by_its_plain_attributes_and_what_its_modules_say_of_themselves_and_not_by_its_mode() -> None:
    assert model_hash(Scaled(2.0)) == model_hash(Scaled(2.0).eval())
    assert model_hash(Scaled(2.0)) != model_hash(Scaled(3.0))
    assert model_hash(Scaled(2.0)) != model_hash(Scaled(2.0, stride=2))

"""Live teachers: asked once a step however many stages ask, models or functions, recognised another time."""

from __future__ import annotations

import copy
import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdkit.context import Context
from kdkit.data import Batch, adopt_data
from kdkit.errors import KdError
from kdkit.session import Session
from kdkit.tasks import Classification
from kdkit.training import fit
from kdkit_distill.response.soft import Soft
from kdkit_distill.sources import Live, _Asked, recognised
from tests import zoo
from tests.plugins.lessons import CountingTeacher, weights


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
        lives = [Live("teacher", run(teacher)) for _ in range(2)]
        for live in lives:
            live.open(torch.device("cpu"), ("first",))
        assert not teacher.training
        for live in lives[order]:
            live.close()
        assert [module.training for module in teacher.modules()] == before[0]
        assert [weight.requires_grad for weight in teacher.parameters()] == before[1]
        assert torch.equal(weights(teacher), before[2])
        assert not teacher.first._forward_hooks


def test_nothing_is_left_behind_after_a_training_that_failed() -> None:
    class Failing(CountingTeacher):
        def forward(self, x: Tensor) -> Tensor:
            if self._asked > 2:
                raise RuntimeError("out of breath")
            return super().forward(x)

    teacher = Failing().train()
    with pytest.raises(RuntimeError, match="out of breath"):
        fit(zoo.mlp(), [Soft(), Soft()], run(teacher))
    gc.collect()
    assert teacher.training
    assert not _Asked.of_threads


def test_an_equal_batch_that_is_another_object_is_asked_about_anew() -> None:
    teacher, context = CountingTeacher(), run(None)
    context.objects = {**context.objects, "teacher": teacher}
    lives = [Live("teacher", context) for _ in range(2)]
    for live in lives:
        live.open(torch.device("cpu"))
    batch = Batch((torch.zeros(2, 16),))
    for each in (batch, batch, Batch((torch.ones(2, 16),)), batch):
        assert torch.equal(lives[0].signal(each).logits, lives[1].signal(each).logits)
    assert teacher._asked == 3
    for live in lives:
        live.close()


# Functions


def answers(x: Tensor) -> Tensor:
    return x[:, :4] * 3


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return answers(x)


@pytest.mark.parametrize(
    "ask", [answers, lambda x: answers(x).numpy(), lambda x: answers(x).tolist(), lambda x: {"logits": answers(x)}, lambda x: answers(x).numpy().astype(np.float64)]
)
def test_a_function_teaches_like_a_model(ask: Any) -> None:
    told, asked = fit(zoo.mlp(), [Soft()], run(Plain())), fit(zoo.mlp(), [Soft()], run(ask))
    assert torch.equal(weights(told), weights(asked))


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
        (lambda x: x[:, :5], "the teacher knows 5 classes, the student 4"),
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
    live = Live("teacher", run(teacher))
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
    assert recognised(plain) != recognised(changed)
    assert recognised(zoo.tiny_bert()) == recognised(zoo.tiny_bert())


def test_a_function_is_recognised_by_the_name_it_is_given(tmp_path: Any) -> None:
    def ask(x: Tensor) -> Tensor:
        return answers(x)

    with pytest.raises(KdError, match="is a function, and nothing tells") as caught:
        fit(zoo.mlp(), [Soft(cache=str(tmp_path / "answers"))], run(ask))
    assert 'ask.kdkit_identity = "name and version"' in str(caught.value)
    ask.kdkit_identity = "far 1"
    fit(zoo.mlp(), [Soft(cache=str(tmp_path / "answers"))], run(ask))
    ask.kdkit_identity = "far 2"
    with pytest.raises(KdError, match="is of another teacher"):
        fit(zoo.mlp(), [Soft(cache=str(tmp_path / "answers"))], run(ask))

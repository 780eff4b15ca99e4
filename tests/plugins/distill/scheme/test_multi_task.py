"""distill multi-task: each head learns from its own teacher."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.pipelines.needs import named_objects
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit.training import fit
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.multi_task import MultiTask, head_of


class Pair(NamedTuple):
    colour: Tensor
    shape: Tensor


FORMS: dict[str, Any] = {"dict": lambda one, two: {"colour": one, "shape": two}, "tuple": lambda one, two: (one, two), "named": Pair}


class Student(nn.Module):
    def __init__(self, form: str = "dict", colours: int = 3):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.colour, self.shape = nn.Linear(8, 16), nn.Linear(16, colours), nn.Linear(16, 5)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.body(x))
        return FORMS[self.form](self.colour(hidden), self.shape(hidden))


def teacher(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(8, classes)


def run(**objects: Any) -> Context:
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(1))
    return Context(Classification(), objects={"train": adopt_data((x, torch.arange(48) % 3), 16), "a": teacher(3, 1), "b": teacher(5, 2), **objects})


def stage(form: str = "dict", **options: Any) -> MultiTask:
    heads = {} if form == "tuple" else {"heads": ("colour", "shape")}
    return MultiTask(**{"teachers": ("a", "b"), **heads, **options})


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_each_head_comes_to_agree_with_its_teacher(form: str) -> None:
    context, student = run(), Student(form)
    x = context.data("train").example().args[0]
    fit(student, [stage(form, epochs=60, learning_rate=0.02)], context)
    for head, name in (("colour", "a"), ("shape", "b")):
        stated = head_of(student(x), str(["colour", "shape"].index(head)) if form == "tuple" else head)
        assert (stated.argmax(1) == context.objects[name](x).argmax(1)).float().mean() > 0.85


def test_the_loss_is_the_weighted_sum_of_the_heads() -> None:
    context, seen = run(), []
    context.observe = seen.append
    student = Student()
    x = torch.cat([batch.args[0] for batch in context.data("train").batches()])
    stated = student(x)
    expected = [soft_labels(stated[head], context.objects[name](x), 2.0).mean().item() for head, name in (("colour", "a"), ("shape", "b"))]
    fit(student, [stage(weights=(1.0, 3.0), temperature=2.0, steps=1, batch_size=48)], context)
    figures = seen[-1].figures
    assert figures["head colour"] == pytest.approx(expected[0], rel=1e-5)
    assert figures["loss"] == pytest.approx(expected[0] + 3 * expected[1], rel=1e-5)


def test_labels_are_left_out_unless_asked_for() -> None:
    assert not stage().required_inputs().labels
    assert stage(labels=True, alpha=0.5).required_inputs().labels
    context, seen = run(), []
    context.observe = seen.append
    fit(Student(), [stage(labels=True, alpha=0.5)], context)
    assert "label" in seen[-1].figures


def test_it_is_cached_with_all_heads(tmp_path: Path) -> None:
    plain, cached = fit(Student(), [stage()], run()), fit(Student(), [stage(cache=str(tmp_path / "answers"))], run())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, cached.state_dict()[name])


def test_a_single_logit_is_two_classes() -> None:
    fit(Student(colours=1), [stage()], run(a=teacher(1, 3)))


@pytest.mark.parametrize(
    ("output", "head", "message"),
    [
        ({"colour": torch.zeros(2)}, "color", "no head 'color'"),
        (torch.zeros(2, 3), "0", "none, only one output"),
        ((torch.zeros(2), torch.zeros(2)), "2", "its heads: 0, 1"),
    ],
)
def test_a_head_that_is_not_there_is_reported_with_those_that_are(output: Any, head: str, message: str) -> None:
    with pytest.raises(KdError) as caught:
        head_of(output, head)
    assert message in str(caught.value)


def test_heads_are_found_in_output_objects() -> None:
    assert head_of(SimpleNamespace(colour=torch.ones(2)), "colour").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ("a",)}, "two teachers or more"),
        ({"heads": ("colour",)}, "a different head for each teacher"),
        ({"heads": ("colour", "colour")}, "a different head for each teacher"),
        ({"weights": (1.0,)}, "one number for each teacher"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
        ({"teachers": ("b", "a")}, "head 'colour' of the student has 3 classes, its teacher b 5"),
        ({"heads": ("colour", "form")}, "no head 'form'"),
    ],
)
def test_bad_options_are_refused_before_training(options: dict[str, Any], message: str) -> None:
    student = Student()
    before = [tensor.clone() for tensor in student.state_dict().values()]
    with pytest.raises(KdError, match=message):
        fit(student, [stage(**options)], run())
    assert all(torch.equal(*pair) for pair in zip(before, student.state_dict().values(), strict=True))


def test_the_stage_names_its_teachers_and_no_other() -> None:
    assert [name for _, kind, name in named_objects(stage()) if kind == "model"] == ["a", "b"]

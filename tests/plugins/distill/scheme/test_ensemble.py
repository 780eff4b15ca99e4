"""distill ensemble: how several answers become one, and a student that is measured against all of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.pipelines.needs import named_objects
from kdkit.session.adoption import adopt_data
from kdkit.session.session import Session
from kdkit.stages.context import Context
from kdkit.tasks import Classification, Regression, Task
from kdkit.training import fit
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.ensemble import Combined, Ensemble, gates, mixture
from tests.fixtures import zoo
from tests.fixtures.lessons import logits, weights


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(each / temperature) for each in row]
    return [each / sum(powers) for each in powers]


# How answers are combined --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_mixture_is_the_weighted_mean_of_probabilities_written_out(temperature: float) -> None:
    stated, weights = logits(3, 5, 4), torch.tensor([0.2, 0.5, 0.3])
    found = mixture(stated, temperature, weights[:, None].expand(3, 5)).div(temperature).softmax(-1)
    for item in range(5):
        each = [softmax(stated[k, item].tolist(), temperature) for k in range(3)]
        expected = [sum(w * row[c] for w, row in zip(weights.tolist(), each, strict=True)) for c in range(4)]
        assert found[item].tolist() == pytest.approx(expected, rel=1e-6)


def test_equal_teachers_are_one_teacher() -> None:
    one = logits(5, 4)
    assert torch.allclose((mixture(torch.stack([one, one, one]), 2.0) / 2).softmax(-1), (one / 2).softmax(-1))


@pytest.mark.parametrize("gate", ["entropy", "confidence"])
def test_the_gate_is_its_formula_written_out(gate: Any) -> None:
    stated = logits(3, 5, 4)
    for item in range(5):
        trust = []
        for k in range(3):
            share = softmax(stated[k, item].tolist(), 1.0)
            trust.append(max(share) if gate == "confidence" else 1 + sum(p * math.log(p) for p in share) / math.log(4))
        assert gates(stated, gate)[:, item].tolist() == pytest.approx([each / sum(trust) for each in trust], rel=1e-6)


def test_the_gate_follows_who_is_sure() -> None:
    sure, unsure = torch.tensor([[20.0, 0, 0]]), torch.tensor([[0.0, 0.1, 0]])
    shares = gates(torch.stack([sure, unsure]))
    assert shares[0, 0] > 0.99
    assert gates(torch.stack([unsure * 0, unsure * 0])).tolist() == [[0.5], [0.5]]


@given(st.integers(0, 500), st.floats(0.3, 9))
@settings(max_examples=30, deadline=None)
def test_neither_the_order_of_the_teachers_nor_a_shift_of_logits_matters(seed: int, temperature: float) -> None:
    stated = logits(3, 4, 5, seed=seed)
    plain = mixture(stated, temperature, gates(stated))
    turned = stated.flip(0) + 7
    assert torch.allclose(plain, mixture(turned, temperature, gates(turned)), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_give_no_nan(dtype: torch.dtype) -> None:
    stated = torch.tensor([[[6e4, -6e4, 0.0]], [[-6e4, 6e4, 0.0]]]).to(dtype)
    for found in (mixture(stated, 1.0), gates(stated), mixture(stated, 1.0, gates(stated, "confidence"))):
        assert found.dtype == torch.float32
        assert not torch.isnan(found).any()


# The stage -----------------------------------------------------------------------------------------------------------


def points(items: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(items, 16, generator=torch.Generator().manual_seed(1))
    return x, x[:, :4].argmax(1)


class Knows(nn.Module):
    """Answers by the first inputs, with an error of its own."""

    def __init__(self, seed: int, classes: int = 4, error: float = 1.0):
        super().__init__()
        self.error = nn.Parameter(torch.randn(16, classes, generator=torch.Generator().manual_seed(seed)) * error)
        self._asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self._asked += 1
        return 3 * x[:, : self.error.shape[1]] + x @ self.error


def run(task: Task | None = None, **objects: Any) -> Context:
    named = {"train": adopt_data(points(), 16), "eval": adopt_data(points(), 16), "a": Knows(1), "b": Knows(2), "c": Knows(3)}
    return Context(task or Classification(), objects={**named, **objects})


def trained(context: Context, **options: Any) -> nn.Module:
    made = Ensemble(**{"teachers": ("a", "b", "c"), **options}).apply(zoo.mlp(), context)
    assert made is not None
    return made


class Together(nn.Module):
    """The ensemble, written by hand."""

    def __init__(self, context: Context, how: str, shares: tuple[float, ...]):
        super().__init__()
        self.members = [context.objects[name] for name in "abc"]
        self.how, self.shares = how, torch.tensor(shares) / sum(shares)

    def forward(self, x: Tensor) -> Tensor:
        stated = torch.stack([member(x) for member in self.members])
        shares = gates(stated) if self.how == "gated" else self.shares[:, None].expand(stated.shape[:-1])
        return (self.shares[:, None, None] * stated).sum(0) if self.how == "logits" else mixture(stated, 1.0, shares)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "shares"), [("mean", ()), ("gated", ()), ("logits", ()), ("logits", (1.0, 0.0, 3.0)), ("weighted", (2.0, 1.0, 1.0)), ("weighted", (0.0, 0.0, 1.0))]
)
def test_a_student_learns_from_it_as_from_one_teacher_that_says_the_same(how: Any, shares: tuple[float, ...]) -> None:
    context = run()
    student = trained(context, combine=how, weights=shares)
    by_hand = fit(zoo.mlp(), [Soft()], run(teacher=Together(context, how, shares or (1.0, 1.0, 1.0))))
    torch.testing.assert_close(weights(student), weights(by_hand), rtol=1e-4, atol=1e-5)


def test_the_student_the_ensemble_and_each_teacher_are_measured() -> None:
    context = run()
    student = trained(context, epochs=2)
    x, y = points()

    def accuracy(answers: Tensor) -> float:
        return (answers.argmax(1) == y).float().mean().item()

    note = next(note for note in context.notes if "its ensemble" in note)
    members = [context.objects[name](x).detach() for name in "abc"]
    together = torch.stack(members).softmax(-1).mean(0)
    for expected in (student(x), together, *members):
        assert f"{accuracy(expected):.3g}"[:5] in note
    assert note.index("student") < note.index("ensemble") < note.index(" a ")


def test_an_ensemble_without_labelled_eval_data_is_not_measured() -> None:
    context = run(eval=None)
    trained(context)
    assert not any("ensemble" in note for note in context.notes)


def test_the_teachers_are_as_before_and_each_asked_once_a_batch() -> None:
    context = run(eval=None)
    teachers = [context.objects[name].train() for name in "abc"]
    before = [weights(each) for each in teachers]
    trained(context, epochs=2)
    assert [each._asked for each in teachers] == [1 + 8] * 3
    assert all(each.training and each.error.requires_grad and each.error.grad is None for each in teachers)
    assert all(torch.equal(one, weights(each)) for one, each in zip(before, teachers, strict=True))


@pytest.mark.slow
def test_an_ensemble_is_cached_like_a_teacher(tmp_path: Path) -> None:
    context, path = run(eval=None), str(tmp_path / "answers")
    plain, cached = trained(context), trained(context, cache=path)
    torch.testing.assert_close(weights(plain), weights(cached))
    asked = [context.objects[name]._asked for name in "abc"]
    trained(context, cache=path, epochs=3)
    assert [context.objects[name]._asked for name in "abc"] == asked
    for other in ({"combine": "gated"}, {"temperature": 2.0}, {"teachers": ("a", "c", "b")}):
        with pytest.raises(KdError, match="is of another teacher"):
            trained(context, cache=path, **other)


def test_functions_may_be_among_the_teachers() -> None:
    trained(run(b=lambda x: (3 * x[:, :4]).tolist()))


def test_the_stage_names_its_teachers_and_no_other() -> None:
    assert [name for flag, kind, name in named_objects(Ensemble(teachers=("a", "b"))) if kind == "model"] == ["a", "b"]


@pytest.mark.slow
def test_a_session_takes_them_by_name() -> None:
    session = Session(zoo.mlp(), train=points(), eval=points())
    session.set(a=Knows(1), b=Knows(2))
    session.run(Ensemble(teachers=("a", "b")))
    with pytest.raises(KdError, match="--teachers far needs a model, and the session has none of that name"):
        session.run(Ensemble(teachers=("a", "far")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ()}, "needs two teachers or more"),
        ({"teachers": ("a", "a")}, "needs two teachers or more"),
        ({"teacher": "a"}, "leave out --teacher"),
        ({"combine": "weighted"}, "needs --weights"),
        ({"weights": (1.0, 1.0, 1.0)}, "works with --combine weighted or logits"),
        ({"combine": "weighted", "weights": (1.0, 2.0)}, "one number for each teacher"),
        ({"combine": "weighted", "weights": (1.0, -2.0, 3.0)}, "none negative"),
        ({"combine": "weighted", "weights": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"temperature_schedule": "linear"}, "one temperature"),
        ({"temperature_schedule": "linear", "combine": "gated"}, "one temperature"),
        ({"temperature_schedule": "linear", "combine": "weighted", "weights": (1.0, 1.0, 1.0)}, "one temperature"),
        ({"divergence": "mse"}, "--combine logits"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    assert any(message in reported for reported in Ensemble(**{"teachers": ("a", "b", "c"), **options}).conflicts())
    with pytest.raises(KdError, match=message):
        trained(run(), **options)


def test_teachers_of_other_classes_are_named() -> None:
    with pytest.raises(KdError, match=r"teacher c answers \(16, 5\), teacher a \(16, 4\)") as caught:
        trained(run(c=Knows(3, classes=5)))
    assert "distill merge" in str(caught.value)


def test_layers_beside_an_ensemble_are_refused_with_the_way_out() -> None:
    with pytest.raises(KdError, match="can't learn from layer 'first' of several teachers"):
        Combined(("a", "b"), run(), "mean", 1.0).open(torch.device("cpu"), ("first",))


@pytest.mark.slow
def test_numbers_are_averaged_where_answers_are_compared_as_they_are() -> None:
    x = points()[0]
    student = nn.Linear(16, 1)
    named = {name: nn.Linear(16, 1) for name in "ab"}
    context = Context(Regression(), objects={"train": adopt_data((x, x[:, :1]), 16), **named})
    stage = Ensemble(teachers=("a", "b"), combine="logits", divergence="mse", temperature=1.0, labels=False, epochs=200, learning_rate=0.02)
    made = fit(student, [stage], context)
    torch.testing.assert_close(made(x), (named["a"](x) + named["b"](x)) / 2, atol=0.05, rtol=0.05)


def test_where_models_answer_with_probabilities_so_does_their_ensemble() -> None:
    """Of logits the first class would be taken for likely: these are the logs of (.5, .5), (.6, .4) and not they."""

    class Says(nn.Module):
        def __init__(self, share: float):
            super().__init__()
            self.stated = torch.tensor([share, 1 - share])

        def forward(self, x: Tensor) -> Tensor:
            return self.stated.expand(len(x), -1)

    held = {"one": Says(0.5), "other": Says(0.7)}
    source = Combined(["one", "other"], Context(Classification(probabilities=True), objects=held), "mean", 1.0)
    source.open(torch.device("cpu"))
    assert torch.allclose(source.model(torch.zeros(2, 1)), torch.tensor([0.6, 0.4]).expand(2, -1))
    source.close()


@pytest.mark.parametrize("gate", ["entropy", "confidence"])
def test_what_tells_how_sure_a_teacher_is_can_be_chosen(gate: Any) -> None:
    context, x = run(eval=None), points()[0][:8]
    source = Ensemble(teachers=("a", "b", "c"), combine="gated", gate=gate, temperature=2.0).source(context)
    source.open(torch.device("cpu"))
    stated = torch.stack([context.objects[name](x).detach() for name in "abc"])
    trust = stated.softmax(-1).amax(-1) if gate == "confidence" else 1 + (stated.softmax(-1) * stated.log_softmax(-1)).sum(-1) / math.log(stated.shape[-1])
    expected = ((trust / trust.sum(0))[..., None] * (stated / 2).softmax(-1)).sum(0)
    assert torch.allclose((source.signal(Batch((x,))).dense / 2).softmax(-1), expected, atol=1e-5)
    source.close()


def test_with_a_student_of_ones_own_the_model_at_hand_is_measured_as_one_of_the_teachers() -> None:
    context, current = run(small=zoo.mlp()), Knows(7)
    context.original = Knows(8)
    Ensemble(teachers=("teacher", "b"), student="small").apply(current, context)
    x, y = points()
    (note,) = [note for note in context.notes if "its ensemble" in note]
    own = [(model(x).argmax(1) == y).float().mean().item() for model in (current, context.original)]
    assert f"{own[0]:.3g}" != f"{own[1]:.3g}"
    assert f"teacher {own[0]:.3g}" in note

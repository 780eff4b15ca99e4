"""distill merge: label sets united in one student; each item learned from the teacher whose data it is from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdkit
from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.pipelines.needs import named_objects
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.adoption import adopt_data
from kdkit.session.execution import raise_problems
from kdkit.stages.context import Context
from kdkit.tasks import CausalLM, Classification
from kdkit.training import fit
from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.scheme.merge import Merge, Merged, at_home, off_home, own_set, read_sets, side_by_side
from kdkit_tune.finetune import Finetune
from tests.fixtures import zoo
from tests.fixtures.lessons import cnn, digit_images, first_loss, logits, weights

SETS, CLASSES = [(0, 1, 2), (2, 3)], 4
"""Two teachers who both know class 2."""


def answers(items: int = 5) -> list[Tensor]:
    return [logits(items, 3), logits(items, 2, seed=1)]


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(each / temperature) for each in row]
    return [each / sum(powers) for each in powers]


# Targets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_all_logits_side_by_side_average_what_two_teachers_know(temperature: float) -> None:
    one, other = answers()
    found = (side_by_side([one, other], SETS, CLASSES, temperature) / temperature).softmax(-1)
    for item in range(5):
        a, b = ([math.exp(z / temperature) for z in each[item].tolist()] for each in (one, other))
        masses = [a[0], a[1], (a[2] + b[0]) / 2, b[1]]
        assert found[item].tolist() == pytest.approx([each / sum(masses) for each in masses], rel=1e-6)


def test_without_overlap_they_are_side_by_side_as_they_are() -> None:
    one, other = answers()
    found = side_by_side([one, other], [(0, 2, 4), (1, 3)], 5, 4.0)
    assert torch.allclose(found[:, [0, 2, 4]], one)
    assert torch.allclose(found[:, [1, 3]], other)


def test_at_home_is_the_own_teachers_distribution_and_nothing_elsewhere() -> None:
    one, other = answers()
    owners = torch.tensor([[True, False, True, False, True], [False, True, True, True, False]])
    found = (at_home([one, other], SETS, CLASSES, 2.0, owners) / 2).softmax(-1)
    a, b = [*softmax(one[0].tolist(), 2.0), 0.0], [0.0, 0.0, *softmax(other[1].tolist(), 2.0)]
    assert found[0].tolist() == pytest.approx(a, rel=1e-6)
    assert found[1].tolist() == pytest.approx(b, rel=1e-6)
    both = [*softmax(one[2].tolist(), 2.0), 0.0], [0.0, 0.0, *softmax(other[2].tolist(), 2.0)]
    assert found[2].tolist() == pytest.approx([(p + q) / 2 for p, q in zip(*both, strict=True)], rel=1e-6)


# Objectives ----------------------------------------------------------------------------------------------------------


def gated(student: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    owners = torch.tensor([[True, True, False, False, True], [False, False, True, True, False]])
    return student, at_home(answers(), SETS, CLASSES, temperature, owners)


def test_the_gated_objective_is_written_out() -> None:
    student, teacher = gated(logits(5, 4, seed=7), 3.0)
    for item, found in enumerate(soft_labels(student, teacher, 3.0).tolist()):
        p, q = softmax(teacher[item].tolist(), 3.0), softmax(student[item].tolist(), 3.0)
        assert found == pytest.approx(9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a), rel=1e-6)


def test_the_own_set_objective_is_written_out() -> None:
    student, teacher = gated(logits(5, 4, seed=7), 3.0)
    for item in range(5):
        own = [c for c in range(4) if teacher[item, c] > -math.inf]
        p, q = softmax(teacher[item, own].tolist(), 3.0), softmax(student[item, own].tolist(), 3.0)
        assert own_set(student, teacher, 3.0)[item].item() == pytest.approx(9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), rel=1e-6)
        assert off_home(student, teacher)[item].item() == pytest.approx(-math.log(sum(softmax(student[item].tolist(), 1.0)[c] for c in own)), rel=1e-6)


def test_at_temperature_1_both_are_the_same_objective() -> None:
    student, teacher = gated(logits(5, 4, seed=7))
    assert torch.allclose(soft_labels(student, teacher), own_set(student, teacher) + off_home(student, teacher))


def test_a_student_that_says_the_same_has_no_loss_and_no_gradient() -> None:
    teacher = side_by_side(answers(), SETS, CLASSES, 2.0)
    student = teacher.clone().requires_grad_()
    loss = soft_labels(student, teacher, 2.0) + own_set(student, teacher, 2.0) + off_home(student, teacher)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    stated = [torch.tensor([[6e4, -6e4, 0.0]]).to(dtype), torch.tensor([[-6e4, 6e4]]).to(dtype)]
    for teacher in (side_by_side(stated, SETS, CLASSES, 1.0), at_home(stated, SETS, CLASSES, 1.0, torch.tensor([[True], [False]]))):
        student = torch.tensor([[-2e4, 0.0, 2e4, 6e4]]).to(dtype).requires_grad_()
        loss = soft_labels(student, teacher, 2.0) + own_set(student, teacher, 2.0) + off_home(student, teacher)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


# Label sets


@pytest.mark.parametrize(
    ("text", "sets", "names"),
    [
        ("0 1 2|3 4", [(0, 1, 2), (3, 4)], ["0", "1", "2", "3", "4"]),
        ("3, 0 | 1 2", [(3, 0), (1, 2)], ["0", "1", "2", "3"]),
        ("cat dog|apple", [(0, 1), (2,)], ["cat", "dog", "apple"]),
        ("b a|a c", [(0, 1), (1, 2)], ["b", "a", "c"]),
    ],
)
def test_sets_are_numbers_or_names(text: str, sets: list, names: list[str]) -> None:
    assert read_sets(text) == (sets, names)


@pytest.mark.parametrize(("text", "message"), [("0 1|", "set 2 is empty"), ("0 1 1|2", "contains '1' twice"), ("0 1|3 4", "0 to 3, but some are missing")])
def test_sets_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(KdError, match=message):
        read_sets(text)


# The stage -----------------------------------------------------------------------------------------------------------


def net(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return zoo.Mlp(classes=classes)


def points(items: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.randn(items, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(items) % 5


def run(data: Any = None, **objects: Any) -> Context:
    named = {"train": adopt_data(points() if data is None else data, 8), "a": net(3, 1), "b": net(2, 2)}
    return Context(Classification(), objects={**named, **objects})


def trained(context: Context, **options: Any) -> nn.Module:
    made = Merge(**{"teachers": ("a", "b"), "labels": False, **options}).apply(net(5, 0), context)
    assert made is not None
    return made


def test_labels_and_given_origins_that_say_the_same_teach_the_same() -> None:
    origin = (points()[1] > 2).long()
    by_labels = trained(run(), labels=True, alpha=0.5)
    by_origin = trained(run(origin=origin.numpy()), labels=True, alpha=0.5, origin="origin")
    assert torch.equal(weights(by_labels), weights(by_origin))


def test_origins_follow_their_items_through_shuffling_and_other_batch_sizes() -> None:
    x, _ = points()
    context = run(x, origin=[0] * 20 + [1] * 20)
    source = Merge(teachers=("a", "b"), labels=False, origin="origin").source(context)
    assert isinstance(source, Merged)
    source.open(torch.device("cpu"))
    for batch in context.data("train").batches(shuffle=True, seed=4, batch_size=7):
        assert batch.numbers is not None
        ruled_out = torch.isinf(source.signal(batch).dense)
        for number, row in zip(batch.numbers.tolist(), ruled_out.tolist(), strict=True):
            assert row == ([False] * 3 + [True] * 2 if number < 20 else [True] * 3 + [False] * 2)
    source.close()


def test_an_item_of_unknown_origin_is_learned_side_by_side_and_the_others_are_not() -> None:
    context = run(points()[0], origin=[0, -1] + [1] * 38)
    source = Merge(teachers=("a", "b"), labels=False, origin="origin").source(context)
    assert torch.isinf(source.signal(context.data("train").example()).dense).sum(1).tolist()[:3] == [2, 0, 3]
    source.close()


def test_a_label_of_several_teachers_is_learned_from_all_of_them() -> None:
    context = run()
    source = Merged(("a", "b"), context, [(0, 1, 2), (2, 3)], 2.0, by_labels=True)
    batch = Batch((points()[0][:4],), labels=torch.tensor([0, 2, 3, -100]))
    assert torch.isinf(source.signal(batch).dense).tolist() == [[False, False, False, True], [False] * 4, [True, True, False, False], [False] * 4]
    source.close()


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ({"labels": True}, "follows from its label"),
        ({"origin": "origin"}, "follows from origin"),
        ({}, "all logits are concatenated; --origin"),
    ],
)
def test_the_gates_are_reported(options: dict[str, Any], reported: str) -> None:
    context = run(origin=[0] * 40)
    trained(context, **options)
    assert any(reported in note for note in context.notes)


def test_one_set_after_another_is_the_default() -> None:
    assert torch.equal(weights(trained(run())), weights(Merge(teachers=("a", "b"), labels=False, classes="0 1 2|3 4").apply(net(5, 0), run())))


def test_all_logits_side_by_side_do_not_ask_the_labels_either() -> None:
    batch = run().data("train").example()
    stated = Merge(teachers=("a", "b"), objective="concat", labels=True).source(run()).signal(batch).dense
    assert torch.isfinite(stated).all()


def test_own_set_is_the_divergence_within_the_set_and_the_whole_of_the_mass_beside_it() -> None:
    x, y = points()
    context, student = run(), net(5, 0)
    student.dropout.p = 0.0
    stated, asked = student(x), torch.cat([context.objects[name].eval()(x).detach() for name in "ab"], 1)
    low = (y < 3)[:, None] == (torch.arange(5) < 3)
    own = stated.masked_fill(~low, -torch.inf)
    mass = (stated.logsumexp(1) - own.logsumexp(1)).mean().item()
    within = torch.where(
        low, (asked.masked_fill(~low, -torch.inf) / 4).softmax(1) * ((asked.masked_fill(~low, -1e9) / 4).log_softmax(1) - (own / 4).log_softmax(1)), 0.0
    ).sum(1)
    found = first_loss(Merge(teachers=("a", "b"), objective="own-set", steps=1, batch_size=40), student, context)
    assert found["mass"] == pytest.approx(mass, rel=1e-5)
    assert found["own set"] == pytest.approx(16 * within.mean().item(), rel=1e-4)
    assert found["loss"] == pytest.approx(0.1 * found["label"] + 0.9 * (found["mass"] + found["own set"]), rel=1e-5)


def test_three_sets_of_different_sizes_follow_one_another() -> None:
    source = Merged(("a", "b", "c"), run(c=net(4, 3)), None, 1.0)
    source.signal(Batch((points()[0][:2],)))
    assert source.sets == [(0, 1, 2), (3, 4), (5, 6, 7, 8)]
    source.close()


@pytest.mark.parametrize("objective", ["gated", "own-set", "concat"])
def test_the_teachers_are_as_before(objective: Any) -> None:
    context = run()
    teachers = [context.objects[name].train() for name in "ab"]
    before = [weights(each) for each in teachers]
    trained(context, objective=objective, labels=True)
    assert all(torch.equal(*pair) for pair in zip(before, map(weights, teachers), strict=True))
    assert all(each.training and all(weight.requires_grad and weight.grad is None for weight in each.parameters()) for each in teachers)


def test_a_merged_teacher_is_cached_with_what_it_rules_out(tmp_path: Path) -> None:
    where = [0] * 20 + [1] * 20
    options = {"origin": "origin", "cache": str(tmp_path / "answers")}
    plain, cached, again = trained(run(origin=where), origin="origin"), trained(run(origin=where), **options), trained(run(origin=where), **options)
    torch.testing.assert_close(weights(plain), weights(cached))
    assert torch.equal(weights(cached), weights(again))
    with pytest.raises(KdError, match="is of another teacher"):
        trained(run(origin=[0] * 40), **options)


@pytest.mark.parametrize("objective", ["gated", "own-set"])
def test_accumulated_batches_are_one_large_batch(objective: Any) -> None:
    found = []
    for options in ({"batch_size": 40}, {"batch_size": 10, "accumulate": 4}):
        context, student = run(), net(5, 0)
        student.dropout.p = 0.0
        fit(student, [Merge(teachers=("a", "b"), objective=objective, optimizer="sgd", learning_rate=0.1, epochs=3, **options)], context)
        found.append(weights(student))
    torch.testing.assert_close(*found)


def test_the_stage_names_its_teachers_and_its_origin() -> None:
    assert {(kind, name) for _, kind, name in named_objects(Merge(teachers=("a", "b"), origin="where"))} >= {("model", "a"), ("model", "b"), ("object", "where")}


@pytest.mark.parametrize(
    ("options", "objects", "message"),
    [
        ({"teachers": ("a",)}, {}, "two teachers or more"),
        ({"classes": "0 1 2|3 4|5"}, {}, "names 3 sets for 2 teachers"),
        ({"classes": "0 1|2 3 4"}, {}, "teacher a has 3 classes, but --classes names 2 for it"),
        ({"classes": "x y z|z w"}, {}, "the teacher has 4 classes, the student 5"),
        ({"temperature_schedule": "linear"}, {}, "one temperature"),
        ({"objective": "concat", "origin": "origin"}, {"origin": [0] * 40}, "leave out --origin"),
        ({"origin": "origin"}, {}, "'origin'"),
        ({"origin": "origin"}, {"origin": [0, 1, 2] * 14}, "does not hold the number of a teacher"),
        ({"origin": "origin"}, {"origin": [-2] * 40}, "does not hold the number of a teacher"),
        ({"origin": "origin"}, {"origin": [0.5] * 40}, "does not hold the number of a teacher"),
        ({"origin": "origin"}, {"origin": [0] * 7}, "--origin has 7 entries"),
    ],
)
def test_bad_options_are_refused_before_training(options: dict[str, Any], objects: dict[str, Any], message: str) -> None:
    with pytest.raises(KdError, match=message):
        trained(run(**objects), **options)


def test_origins_want_items_with_numbers() -> None:
    x, y = points()

    def shuffled() -> Any:
        order = torch.randperm(40)
        return zip(x[order].split(8), y[order].split(8), strict=True)

    with pytest.raises(KdError, match="the training data has no numbers"):
        trained(run(shuffled, origin=[0] * 40), origin="origin", epochs=2)


def test_vocabularies_are_no_label_sets() -> None:
    context = run()
    context.task = CausalLM()
    with pytest.raises(KdError, match="language models have none"):
        trained(context)


# Does it help? -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    """1300 images to learn from and 497 to test on, and teachers of the digits 0 to 4 and 5 to 9."""
    x, y = digit_images()
    train, low = (x[:1300], y[:1300]), y[:1300] < 5
    taught = [
        fit(cnn(8, seed, 5), [Finetune(epochs=8, learning_rate=0.02, batch_size=64)], Context(Classification(), objects={"train": adopt_data(part)}))
        for seed, part in enumerate([(train[0][low], train[1][low]), (train[0][~low], train[1][~low] - 5)])
    ]
    return {"train": train, "test": (x[1300:], y[1300:]), "a": taught[0], "b": taught[1]}


@pytest.mark.slow
def test_knowing_where_items_come_from_beats_all_logits_side_by_side(digits: dict[str, Any]) -> None:
    x, y = digits["train"]
    objects = {"train": adopt_data(x, 64), "origin": (y > 4).long(), "a": digits["a"], "b": digits["b"]}
    accuracy: dict[str, float] = {}
    for name, options in {"concat": {"objective": "concat"}, "gated": {"origin": "origin"}, "own-set": {"origin": "origin", "objective": "own-set"}}.items():
        rights = []
        for seed in range(2):
            stage = Merge(teachers=("a", "b"), labels=False, optimizer="sgd", learning_rate=0.05, epochs=6, **options)
            student = fit(cnn(4, 3 + seed), [stage], Context(Classification(), seed=seed, objects=objects))
            rights.append((student(digits["test"][0]).argmax(1) == digits["test"][1]).float().mean().item())
        accuracy[name] = sum(rights) / len(rights)
    assert accuracy["gated"] > accuracy["concat"] + 0.02, accuracy
    assert accuracy["own-set"] > accuracy["concat"] + 0.02, accuracy
    assert accuracy["gated"] > 0.88, accuracy


def test_a_cache_is_refused_where_labels_tell_the_teacher() -> None:
    (problem,) = Merge(teachers=("a", "b"), cache="file").conflicts()
    assert "--origin" in problem
    for reported in ({"origin": "where"}, {"objective": "concat"}, {"labels": False}, {"sources": ("one", "other"), "classes": "u v|w"}):
        assert not list(Merge(**{"teachers": ("a", "b"), "cache": "file", **reported}).conflicts())


# A data set a teacher ------------------------------------------------------------------------------------------------


def parted() -> dict[str, Any]:
    """The points of classes 0 to 2 and those of 3 and 4, each with labels from 0."""
    x, y = points()
    low = y < 3
    return {"one": adopt_data((x[low], y[low]), 8), "other": adopt_data((x[~low], y[~low] - 3), 8)}


def joined() -> tuple[Tensor, Tensor]:
    x, y = points()
    low = y < 3
    return torch.cat([x[low], x[~low]]), torch.cat([y[low], y[~low]])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["gated", "own-set", "concat"])
def test_a_data_set_a_teacher_is_the_same_as_all_of_them_with_their_origin(objective: Any) -> None:
    x, y = joined()
    reported = {} if objective == "concat" else {"origin": "origin"}
    alone = trained(run(x, origin=(y > 2).long()), objective=objective, epochs=2, **reported)
    apart = trained(run(**parted() | {"train": None}), objective=objective, epochs=2, sources=("one", "other"))
    assert torch.equal(weights(alone), weights(apart))


def test_labels_of_a_data_set_are_numbered_as_in_its_teachers_head() -> None:
    classes = "u v w|x y"
    alone = trained(run(joined(), origin=(joined()[1] > 2).long()), labels=True, alpha=0.5, origin="origin", classes=classes)
    apart = trained(run(**parted()), labels=True, alpha=0.5, sources=("one", "other"), classes=classes)
    assert torch.equal(weights(alone), weights(apart))


def test_a_shared_class_of_two_data_sets_is_one_label_and_an_absent_label_none() -> None:
    x, _ = points(4)
    held = {"one": adopt_data((x, torch.tensor([0, 2, -100, 1]))), "other": adopt_data((x, torch.tensor([0, 1, -100, 1])))}
    together = Merge(teachers=("a", "b"), classes="u v w|w x", sources=("one", "other"))._together(run(**held))
    (batch,) = together.batches()
    assert batch.labels.tolist() == [0, 2, -100, 1, 2, 3, -100, 3]
    assert batch.numbers.tolist() == list(range(8))


@pytest.mark.slow
def test_a_session_passes_on_a_data_set_a_teacher_without_any_training_data() -> None:
    (x, y), held = joined(), parted()
    session = kdkit.Session(net(5, 0), eval=(x, y), a=net(3, 1), b=net(2, 2), measures=("quality",), one=held["one"], other=held["other"])
    made = session.run('distill merge --teachers a b --sources one other --classes "u v w|x y" --epochs 2')
    assert any("follows from the source it is of" in note for note in made.notes)
    found = kdkit.compare_with(session, "tune finetune --data eval --steps 4", same_loop=True, seeds=1)
    assert found.compared[0].figure == made["accuracy"]
    assert found.reference is None
    with pytest.raises(KdError, match="no data 'train' to count the steps of distill merge\n.*--steps"):
        kdkit.compare_with(session, "tune finetune --data eval", same_loop=True)


def checked(stage: Merge, context: Context) -> None:
    raise_problems(stage, net(5, 0), context)
    stage.apply(net(5, 0), context)


@pytest.mark.parametrize(
    ("options", "objects", "message"),
    [
        ({"sources": ("one",)}, {}, "a data set for each teacher"),
        ({"sources": ("one", "other"), "origin": "origin"}, {"origin": [0] * 40}, "leave out --origin"),
        ({"sources": ("one", "other"), "data": "one"}, {}, "leave out --data"),
        ({"sources": ("one", "other"), "labels": True}, {}, "add --classes to place them in the union"),
        ({"sources": ("one", "bare"), "labels": True, "classes": "u v w|x y"}, {}, "bare has no labels"),
        ({"sources": ("one", "stream")}, {}, "can't be joined"),
        ({"sources": ("one", "wide")}, {}, "can't be joined"),
        ({"sources": ("one", "one"), "labels": True, "classes": "u v w|x y"}, {}, "not numbers of the 2 classes"),
    ],
)
def test_data_sets_that_do_not_fit_their_teachers_are_refused(options: dict[str, Any], objects: dict[str, Any], message: str) -> None:
    x, _ = points()
    odd = {"bare": adopt_data(x), "stream": Data(lambda: [x], "a stream"), "wide": adopt_data(torch.zeros(40, 17))}
    with pytest.raises(KdError, match=message):
        checked(Merge(**{"teachers": ("a", "b"), "labels": False, **options}), run(**parted(), **odd, **objects))


def test_in_a_group_it_has_no_data_of_its_own() -> None:
    with pytest.raises(KdError, match="together: distill merge"):
        Pipeline.from_lines("together:\n    distill merge --teachers a b --sources one other\n    tune finetune")

"""Agreement: what is counted, what is shown, and where it can't be told."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdkit
from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.tasks import CausalLM, Classification, MultiLabel, Regression, TokenClassification
from kdkit.views import Agreement
from kdkit.views.agreement import AgreementMatrix, compare_predictions
from tests.fixtures.zoo import batch as zoo_batch
from tests.fixtures.zoo import tiny_llama


def one_hot(classes: list[int], width: int) -> Tensor:
    return torch.eye(width)[torch.tensor(classes)]


def of(teacher: list[int], student: list[int], labels: list[int] | None, width: int = 3, **named: Any) -> AgreementMatrix:
    data = Data(lambda: [Batch((torch.zeros(len(teacher), 1),), labels=None if labels is None else torch.tensor(labels))], "made", len(teacher))
    return compare_predictions(Classification(), ("@s", lambda batch: one_hot(student, width)), ("@t", lambda batch: one_hot(teacher, width)), data, **named)


def test_pairs_and_sides_are_counted_as_by_hand() -> None:
    found = of([0, 0, 1, 1, 2], [0, 1, 1, 0, 2], [0, 1, 1, 1, 0])
    assert found.pairs == {(0, 0): 1, (0, 1): 1, (1, 1): 1, (1, 0): 1, (2, 2): 1}
    assert found.value == 3 / 5
    assert found.right == {(True, True): 2, (False, True): 1, (True, False): 1, (False, False): 1}
    assert repr(found).splitlines()[:2] == ["@s agrees with @t on 0.6 of 5 decisions on eval", "teacher, student  0  1  2"]
    assert repr(found.verdict).splitlines()[2] == "only teacher          1    0.2"


def test_an_item_whose_label_is_left_out_is_compared_but_not_scored() -> None:
    found = of([0, 1], [0, 1], [-100, 1])
    assert (found.count, sum(found.right.values())) == (2, 1)


def test_without_labels_there_is_no_verdict() -> None:
    found = of([0, 1], [0, 0], None)
    assert found.verdict is None
    assert "who is right" not in repr(found)
    assert "who is right" not in found._repr_html_()


def test_rare_classes_are_gathered_and_nothing_is_lost() -> None:
    teacher = [each for each in range(50) for _ in range(1 + (each % 25 == 0) * 9)]
    found = of(teacher, [0] * len(teacher), None, 50)
    names, cells = found.grid()
    assert len(names) == len(cells) == 21
    assert {"0", "25", "others (30)"} <= set(names)
    assert sum(map(sum, cells)) == len(teacher)
    assert "others (30)" in found._repr_html_()


def test_heads_of_different_width_are_compared_by_class() -> None:
    data = Data(lambda: [Batch((torch.zeros(2, 1),))], "made", 2)
    found = compare_predictions(Classification(), ("a", lambda batch: one_hot([0, 1], 2)), ("b", lambda batch: one_hot([0, 4], 5)), data)
    assert found.pairs == {(0, 0): 1, (4, 1): 1}


def test_tokens_count_as_the_mask_has_them() -> None:
    labels = torch.tensor([[1, 0, -100], [2, -100, -100]])
    data = Data(lambda: [Batch((torch.zeros(2, 3),), labels=labels)], "made", 2)
    reported = torch.eye(3)[torch.tensor([[1, 1, 2], [2, 0, 0]])]
    taught = torch.eye(3)[torch.tensor([[1, 0, 0], [0, 1, 1]])]
    found = compare_predictions(TokenClassification(), ("a", lambda batch: reported), ("b", lambda batch: taught), data)
    assert found.pairs == {(1, 1): 1, (0, 1): 1, (0, 2): 1}
    assert found.right == {(True, True): 1, (True, False): 1, (False, True): 1}


def test_a_language_model_is_compared_on_each_next_token() -> None:
    batch = zoo_batch("tiny_llama")
    data = Data(lambda: [batch], "words", batch.size)
    one, two = tiny_llama(), tiny_llama()
    same = compare_predictions(CausalLM(), ("a", lambda batch: batch.call(one)), ("b", lambda batch: batch.call(two)), data)
    assert same.value == 1
    assert same.count == sum(same.right.values()) == int(CausalLM().mask(batch).sum())


@pytest.mark.parametrize(("task", "low"), [(Regression(), 0.0), (MultiLabel(), 0.0)])
def test_answers_that_are_no_classes_are_drawn_by_how_alike_they_are(task: Any, low: float) -> None:
    data = Data(lambda: [Batch((torch.zeros(4, 1),))], "made", 4)
    one, two = torch.tensor([[1.0], [2.0], [-1.0], [4.0]]), torch.tensor([[1.0], [1.0], [1.0], [4.0]])
    found = compare_predictions(task, ("a", lambda batch: one), ("b", lambda batch: two), data)
    assert found.value == pytest.approx(task.agreement(one, two, Batch()).mean().item())
    assert sum(found.ranges().values()) == 4
    assert next(iter(found.ranges())) == f"{low:.1f}"
    assert "<svg" in found._repr_html_()
    assert repr(found).startswith("a is ")


def test_cosines_below_zero_have_their_ranges() -> None:
    found = AgreementMatrix("a", "b", "eval", values=torch.tensor([-1.0, 0.0, 1.0]))
    assert list(found.ranges().values()) == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_answers_of_another_shape_are_refused() -> None:
    data = Data(lambda: [Batch((torch.zeros(2, 1),))], "made", 2)
    with pytest.raises(KdError, match=r"b decides \(2, 4\) times about a batch, a \(2,\) times"):
        compare_predictions(Classification(), ("a", lambda batch: torch.zeros(2, 3)), ("b", lambda batch: torch.zeros(2, 4, 3)), data)


def test_nothing_to_compare_is_an_error() -> None:
    data = Data(lambda: [Batch((torch.zeros(1, 2),), labels=torch.tensor([[-100, -100]]))], "made", 1)
    with pytest.raises(KdError, match="nothing to compare"):
        compare_predictions(TokenClassification(), ("a", lambda batch: torch.zeros(1, 2, 3)), ("b", lambda batch: torch.zeros(1, 2, 3)), data)


def session(**given: Any) -> kdkit.Session:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    given = {"train": (x, x.argmax(1)), "eval": (x, x.argmax(1)), "measures": ("quality",)} | given
    return kdkit.Session(nn.Linear(4, 4), **given)


def test_a_session_compares_versions_teachers_and_models_and_changes_nothing() -> None:
    teacher = nn.Linear(4, 4)
    with torch.no_grad():
        teacher.weight.copy_(10 * torch.eye(4))
    held = session(teacher=teacher)
    before = held.history
    assert held.show(Agreement()).summary.startswith("@base agrees with teacher on ")
    assert (
        held.show(Agreement(teacher="original")).value
        == held.show(Agreement(teacher="@base")).value
        == held.show(Agreement(student="@base", teacher=held.head)).value
        == 1
    )
    assert held.show("agreement --teacher tutor --data train", tutor=teacher).value == held.show(Agreement()).value
    assert held.show(Agreement(data="four"), four=(torch.eye(4), torch.arange(4))).count == 4
    assert held.history is before
    assert not {"tutor", "four"} & set(held.objects)
    assert teacher.training
    verdict = held.show(Agreement())
    assert verdict.right[True, True] + verdict.right[False, True] == round(held.head["accuracy"] * 40)


def test_without_a_teacher_it_is_the_model_the_session_began_with() -> None:
    held = session()
    held.run("tune finetune --steps 3 --learning-rate 0.1")
    assert held.show(Agreement()).summary.startswith("@1 agrees with the original on ")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(KdError, match="there is no model 'tutor'"):
        session().show(Agreement(teacher="tutor"))
    with pytest.raises(KdError, match="has no 'eval'"):
        session(eval=None).show(Agreement())
    with pytest.raises(KdError, match="no version @nobody"):
        session().show(Agreement(student="@nobody"))


def test_classes_are_called_as_the_models_config_calls_them() -> None:
    held = session()
    held.original.config = type("Config", (), {"id2label": {0: "cat", 1: "dog", 2: "fox", 3: "owl"}})()
    assert "cat" in repr(held.show(Agreement()))
    held.original.config = type("Config", (), {"id2label": {0: "LABEL_0"}})()
    assert "LABEL" not in repr(held.show(Agreement()))


def test_an_empty_counter_is_no_decision() -> None:
    assert AgreementMatrix("a", "b", "eval", Counter({(1, 1): 2})).grid() == (["1"], [[2]])

"""ConfusionMatrix: labels against decisions, counted as by hand, and where there is nothing to count."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kdkit
from kdkit.data import Batch, Data
from kdkit.errors import KdError
from kdkit.tasks import CausalLM, Classification, Regression, TokenClassification
from kdkit.views import Confusion
from kdkit.views.confusion import ConfusionMatrix, confusion_matrix
from tests.fixtures.zoo import batch as zoo_batch
from tests.fixtures.zoo import tiny_llama


def of(labels: list[int], decided: list[int], width: int = 4) -> ConfusionMatrix:
    data = Data(lambda: [Batch((torch.zeros(len(labels), 1),), labels=torch.tensor(labels))], "made", len(labels))
    return confusion_matrix(Classification(), "@s", lambda batch: torch.eye(width)[torch.tensor(decided)], data)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_all_is_counted_as_by_hand(both: list[tuple[int, int]]) -> None:
    found = of([label for label, _ in both], [decision for _, decision in both])
    assert found.pairs == Counter(both)
    assert found.accuracy == pytest.approx(sum(label == decision for label, decision in both) / len(both))
    for name, labels, decisions, recall, precision in found.classes.rows:
        each = int(name)
        right = both.count((each, each))
        assert labels == sum(label == each for label, _ in both)
        assert decisions == sum(decision == each for _, decision in both)
        assert recall.value == (f"{right / labels:.3g}" if labels else "")
        assert precision.value == (f"{right / decisions:.3g}" if decisions else "")


def test_the_commonest_confusion_is_reported_and_none_where_all_is_right() -> None:
    assert "most often 1 is taken for 2 (2)" in of([1, 1, 0, 3], [2, 2, 1, 3]).summary
    assert of([1, 2], [1, 2]).summary == "@s is right in 1 of 2 decisions on eval"


def test_items_without_a_label_do_not_count() -> None:
    assert of([-100, 1, 2], [0, 1, 1]).pairs == {(1, 1): 1, (2, 1): 1}
    with pytest.raises(KdError, match="not one label of eval counts"):
        of([-100], [0])


def test_probabilities_count_as_their_likeliest_class() -> None:
    data = Data(lambda: [Batch((torch.zeros(2, 1),), labels=torch.tensor([[0.2, 0.8], [0.9, 0.1]]))], "made", 2)
    assert confusion_matrix(Classification(), "@s", lambda batch: torch.eye(2), data).pairs == {(1, 0): 1, (0, 1): 1}


def test_tokens_count_as_the_mask_has_them() -> None:
    data = Data(lambda: [Batch((torch.zeros(2, 3),), labels=torch.tensor([[1, 0, -100], [2, -100, -100]]))], "made", 2)
    reported = torch.eye(3)[torch.tensor([[1, 1, 2], [2, 0, 0]])]
    assert confusion_matrix(TokenClassification(), "@s", lambda batch: reported, data).pairs == {(1, 1): 1, (0, 1): 1, (2, 2): 1}


def test_a_language_model_is_scored_on_each_next_token() -> None:
    batch, model = zoo_batch("tiny_llama"), tiny_llama()
    found = confusion_matrix(CausalLM(), "@s", lambda batch: batch.call(model), Data(lambda: [batch], "words", batch.size))
    assert found.count == int(CausalLM().mask(batch).sum())  # type: ignore[union-attr]
    assert len(found.classes.rows) <= 20


def test_many_classes_are_gathered_and_nothing_is_lost() -> None:
    found = of(list(range(50)), [0] * 50, 50)
    assert "others (30)" in repr(found)
    assert "others (30)" in found.chart
    assert len(found.classes.rows) == 20


def session(**given: object) -> kdkit.Session:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    return kdkit.Session(nn.Linear(4, 4), **{"eval": (x, x.argmax(1)), "measures": ("quality",)} | given)  # type: ignore[arg-type]


def test_a_sessions_confusion_has_the_accuracy_of_its_report_and_the_configs_names() -> None:
    held = session()
    held.original.config = type("Config", (), {"id2label": {0: "cat", 1: "dog", 2: "fox", 3: "owl"}})()  # type: ignore[assignment]
    found = held.show(Confusion())
    assert found.accuracy == pytest.approx(held.head["accuracy"])
    assert {row[0] for row in found.classes.rows} == {"cat", "dog", "fox", "owl"}
    assert "label cat" in found._repr_html_()
    assert held.show(Confusion(version="@base", data="four"), four=(torch.eye(4), torch.arange(4))).count == 4


def test_what_is_missing_is_named() -> None:
    with pytest.raises(KdError, match="confusion needs data with labels, and the session has no 'eval'"):
        session(eval=None).show(Confusion())
    with pytest.raises(KdError, match="needs labels"):
        session(eval=torch.randn(4, 4), task="classification").show(Confusion())
    with pytest.raises(KdError, match="confusion needs classes, and the task is regression"):
        confusion_matrix(Regression(), "@s", lambda batch: batch.args[0], Data(lambda: [torch.zeros(2, 1)], "made"))

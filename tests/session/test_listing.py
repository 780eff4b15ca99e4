"""Listings: a figure that is missing is explained where it is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.measurement.report import Figure, Report
from kdkit.session.history import Version
from kdkit.session.listing import Listing
from kdkit.session.session import Session

X, Y = torch.randn(8, 4), torch.arange(8) % 3
WRONG: dict[str, tuple[Callable[[], tuple], dict[str, Any], str]] = {
    "labels beyond the classes": (lambda: (X, Y + 1), {}, "a label is 3, and the model has 3 classes"),
    "a label of nan": (lambda: (X, Y.float().masked_fill(Y == 1, torch.nan)), {"task": "classification"}, "the labels are nan"),
    "an input of nan": (lambda: (X.clone().index_fill_(0, torch.tensor([5]), torch.nan), Y), {}, "the inputs of item 5 of the data are nan or infinite"),
    "a number of nan": (lambda: (X, X[:, :3].clone().index_fill_(0, torch.tensor([2]), torch.nan)), {}, "the labels of item 2 of the data are nan"),
    "no labels": (lambda: (X, None), {}, "classification needs labels"),
    "fractions as labels": (lambda: (X, Y + 0.5), {"task": "classification"}, "the labels are fractions"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_reason_is_in_every_table_in_which_the_quality_is_missing(wrong: str) -> None:
    make, settings, reason = WRONG[wrong]
    session = Session(nn.Linear(4, 3), eval=make(), measures=("quality", "parameters"), **settings)
    for table in (session.status(), session.compare(), session.head.report):
        assert reason in str(table)
        assert reason in table._repr_html_()


def test_a_reason_that_is_not_of_all_versions_names_those_that_it_is_of() -> None:
    session = Session(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), eval=(X, Y + 1), measures=("quality", "parameters"))
    session.run("decompose svd --ratio 0.5", label="thin")
    session.set(eval=(X, Y))
    assert "note: @thin: quality was not measured" in str(session.status())


def test_a_dataframe_has_a_row_for_each_version_and_figures_in_base_units():
    found = Listing((Version(0, None, Report((Figure("latency", 2.0, "ms", "lower"), Figure("accuracy", 0.5))), frozenset(), "base"),), head=0).to_dataframe()
    assert found.to_dict("records")[0] | {"parent": None} == {
        "version": 0, "label": "base", "line": "", "parent": None, "status": "head", "latency": 0.002, "accuracy": 0.5,
    }  # fmt: skip


def test_an_unknown_format_is_refused_with_the_list():
    with pytest.raises(KdError, match="no table format 'html'"):
        Listing(()).text_as("html")


def test_a_dataframe_without_pandas_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(KdError) as raised:
        Listing(()).to_dataframe()
    assert "kdkit[pandas]" in str(raised.value.hints)


def test_the_dataframe_of_a_session_has_its_versions_and_their_figures():
    session = Session(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), eval=(X, Y), measures=("quality", "parameters"))
    session.run("decompose svd --ratio 0.5", label="thin")
    found = session.to_dataframe()
    assert found["label"].tolist() == ["base", "thin"]
    assert found["line"][1].startswith("decompose svd")
    assert found["status"].tolist() == ["", "head"]
    assert found["parameters"].tolist() == [version["parameters"] for version in session.versions]

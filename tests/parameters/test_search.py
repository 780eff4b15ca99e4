"""Search ranges: declared once, validated at once, and fed to optuna as plain data."""

from __future__ import annotations

import json
from typing import Literal

import pytest

import kdkit
from kdkit import Search
from kdkit.errors import KdError
from kdkit.parameters.description import explanation, search_of
from kdkit.parameters.settings import Settings, param


class Sample(Settings):
    rate: float = param(1e-3, "learning rate", gt=0, search=Search(1e-5, 1e-1, log=True))
    rank: int = param(8, "of the adapters", ge=1, search=Search(2, 64, step=2))
    ratio: float | None = param(None, "share", gt=0, lt=1, search=(0.1, 0.8))
    bits: Literal[4, 8] = param(8, "of the weights", search=(4, 8))
    method: str = param("a", "way", search=("a", "b"))
    widths: dict[str, int] = param({}, "by layer", ge=2, le=8, search=Search(2, 8))
    plain: int = param(1, "nothing to search")


@pytest.mark.parametrize(
    ("name", "base", "expected"),
    [
        ("rate", float, ("suggest_float", {"low": 1e-5, "high": 1e-1, "log": True})),
        ("rank", int, ("suggest_int", {"low": 2, "high": 64, "step": 2})),
        ("ratio", float, ("suggest_float", {"low": 0.1, "high": 0.8})),
        ("bits", int, ("suggest_categorical", {"choices": [4, 8]})),
        ("method", str, ("suggest_categorical", {"choices": ["a", "b"]})),
        ("widths", int, ("suggest_int", {"low": 2, "high": 8})),
    ],
)
def test_a_declared_search_is_what_optuna_is_called_with(name, base, expected):
    found = search_of(Sample, name)
    assert found.optuna_suggestion(base) == expected


def test_a_parameter_without_a_search_has_none():
    assert search_of(Sample, "plain") is None


@pytest.mark.parametrize("search", [Search(1e-5, 1e-1, log=True), Search(0, 1, step=0.25), Search(choices=("a", "b"))])
def test_a_search_is_plain_data_and_comes_back_from_it(search):
    assert Search(**json.loads(json.dumps(search.data()))) == search


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Search(2, 1), "low must be less than high"),
        (lambda: Search(1, 1), "low must be less than high"),
        (lambda: Search(0, 1, log=True), "a logarithmic range needs low > 0"),
        (lambda: Search(1, 8, log=True, step=2), "excludes log"),
        (lambda: Search(0, 1, step=0), "step must be greater than 0"),
        (lambda: Search(0, 1, step=2), "fit into the range"),
        (lambda: Search(1), "a range needs two numbers"),
        (lambda: Search("a", "b"), "a range needs two numbers"),
        (lambda: Search(1, 2, choices=(1, 2)), "choices exclude a range"),
        (lambda: param(0.5, "share", gt=0, lt=1, search=Search(0.1, 1)), "goes to 1, which the parameter's bounds exclude"),
        (lambda: param(4, "bits", ge=2, search=Search(choices=(1, 2))), "goes to 1, which the parameter's bounds exclude"),
    ],
)
def test_an_impossible_search_is_refused_where_it_is_declared(make, problem):
    with pytest.raises(KdError, match=problem):
        make()


def test_help_shows_the_range():
    assert explanation(Sample, "rate") == "learning rate (search: 1e-05 to 0.1, log scale)"
    assert explanation(Sample, "rank") == "of the adapters (search: 2 to 64, in steps of 2)"
    assert explanation(Sample, "bits") == "of the weights (search: 4 | 8)"


def test_the_learning_rate_of_training_is_searched_on_a_log_scale():
    finetune = kdkit.Pipeline.of("tune finetune").stages[0]
    assert search_of(type(finetune), "learning_rate").log

"""ParetoFrontier: the frontier by brute force, what is not counted, and what is told of it."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kdkit
from kdkit.errors import KdError
from kdkit.measurement.report import Figure
from kdkit.views import Pareto
from kdkit.views.pareto import FRONTIER, ParetoFrontier

FEW = st.integers(0, 6).map(float)
WAYS = st.sampled_from(["higher", "lower"])


def of(*values: tuple[float, float] | tuple[float, float, bool], quality: str = "higher", cost: str = "lower") -> ParetoFrontier:
    """From (cost, quality) or (cost, quality, simulated), named @0, @1, ..."""
    figures = [(Figure("accuracy", each[1], "", quality), Figure("size", each[0], "B", cost, simulated=len(each) > 2)) for each in values]
    return ParetoFrontier.of("accuracy", "size", [(f"@{at}", *each) for at, each in enumerate(figures)])


@pytest.mark.slow
@given(st.lists(st.tuples(FEW, FEW), max_size=12), WAYS, WAYS)
def test_the_frontier_is_what_brute_force_finds(values: list[tuple[float, float]], quality: str, cost: str) -> None:
    def no_worse(one: float, two: float, better: str) -> bool:
        return one >= two if better == "higher" else one <= two

    best = {
        f"@{at}"
        for at, mine in enumerate(values)
        if not any(theirs != mine and no_worse(theirs[0], mine[0], cost) and no_worse(theirs[1], mine[1], quality) for theirs in values)
    }
    found = of(*values, quality=quality, cost=cost)
    assert {point.name for point in found.frontier} == best
    by_name = {point.name: point for point in found.points}
    for point in found.points:
        assert (point.verdict == FRONTIER) == (not point.behind)
        assert not point.behind or (by_name[point.behind].beats(point) and point.behind in best)


def test_a_simulated_version_is_shown_and_wins_nothing() -> None:
    found = of((4, 0.9), (1, 0.95, True), (5, 0.8))
    assert [point.verdict for point in found.points] == ["simulated", FRONTIER, "behind @0"]
    assert [point.name for point in found.frontier] == ["@0"]
    assert "1 B simulated" in repr(found)
    assert "simulated" in found.chart


def test_versions_that_are_equal_are_both_on_the_frontier() -> None:
    assert [point.verdict for point in of((1, 1), (1, 1)).points] == [FRONTIER] * 2


def test_the_picture_tells_each_point_in_words() -> None:
    chart = of((4300, 0.988), (9000, 0.98)).chart
    assert 'aria-label="@0: size 4.3 kB, accuracy 0.988, on the frontier"' in chart
    assert 'aria-label="@1: size 9 kB, accuracy 0.98, behind @0"' in chart
    assert "accuracy (higher is better)" in chart
    assert "size (lower is better)" in chart


def test_nothing_has_no_frontier() -> None:
    empty = ParetoFrontier("accuracy", "size", (), ("@base has no figure size",))
    assert repr(empty) == "no version is on a frontier of accuracy against size\nnote: @base has no figure size"
    assert "<svg" not in empty._repr_html_()
    assert "@base has no figure size" in empty._repr_html_()


@pytest.mark.slow
def test_two_hundred_versions_stay_one_picture_with_all_of_them() -> None:
    found = of(*((1000 + at * 37 % 991, 0.5 + (at * 61 % 97) / 200) for at in range(200)))
    assert found._repr_html_().count('role="listitem"') == 200
    assert len(repr(found).splitlines()) == 202


def test_a_frontier_that_differs_from_run_to_run_is_not_in_text_that_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(first: float, second: float) -> ParetoFrontier:
        figures = [(name, Figure("accuracy", 0.9), Figure("latency", each, "ms", "lower")) for name, each in (("@a", first), ("@b", second))]
        return ParetoFrontier.of("accuracy", "latency", figures)

    assert repr(timed(1, 2)) != repr(timed(2, 1))
    monkeypatch.setenv("KDKIT_STABLE", "1")
    assert repr(timed(1, 2)) == repr(timed(2, 1))
    assert timed(1, 2)._repr_html_() == timed(2, 1)._repr_html_()
    assert "…" in repr(timed(1, 2))


def session(**given: object) -> kdkit.Session:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    return kdkit.Session(nn.Linear(4, 4), **{"train": (x, x.argmax(1)), "eval": (x, x.argmax(1)), "measures": ("quality", "size")} | given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_session_tells_its_versions_by_its_tasks_metric_and_their_size() -> None:
    held = session()
    held.run("tune finetune --steps 8 --learning-rate 0.5", label="tuned")
    found = held.show(Pareto())
    assert (found.quality, found.cost) == ("accuracy", "size")
    assert {point.name: point.verdict for point in found.points} == {"@tuned": FRONTIER, "@base": "behind @tuned"}
    assert [point.name for point in held.show(Pareto(versions=("@base",), quality="loss")).points] == ["@base"]


def test_versions_that_lack_a_figure_are_reported() -> None:
    held = session()
    held.set(measures=("parameters",))
    held.run("tune finetune --steps 1", label="bare")
    found = held.show(Pareto())
    assert [point.name for point in found.points] == ["@base"]
    assert found.lacking == ("@bare has no figure accuracy or size",)
    assert "note: @bare has no figure accuracy or size" in repr(found)
    assert held.show(Pareto(quality="parameters")).points == ()


def test_an_unknown_figure_is_an_error_with_the_near_ones() -> None:
    with pytest.raises(KdError, match=re.compile("no version has a figure 'acuracy'.*did you mean accuracy.*figures: accuracy", re.DOTALL)):
        session().show(Pareto(quality="acuracy"))
    with pytest.raises(KdError, match="no version has a figure 'speed'"):
        session().show(Pareto(cost="speed"))
    with pytest.raises(KdError, match="no version @nobody"):
        session().show(Pareto(versions=("@nobody",)))
    with pytest.raises(KdError, match="no quality was measured"):
        kdkit.Session(nn.Linear(2, 2)).show(Pareto())

"""The report of a comparison: tables, verdict line and HTML."""

from __future__ import annotations

from typing import Any

import pytest

from kdkit.session.comparison_report import PairedComparison, TrialRun


def comparison(**changes: Any) -> PairedComparison:
    facts: dict[str, Any] = {"metric": "accuracy", "better": "higher", "lines": ("distill soft", "tune finetune"), "start": ("@base", 0.1), "reference": ("teacher", 1.0)}
    facts |= {"control": (TrialRun(0.5), TrialRun(0.6), TrialRun(0.55)), "compared": (TrialRun(0.75), TrialRun(0.84), TrialRun(0.8))} | changes
    return PairedComparison(**{"seeds": tuple(range(len(facts["control"])))} | facts)


def one_pair(control: TrialRun, compared: TrialRun, **changes: Any) -> PairedComparison:
    return comparison(control=(control,), compared=(compared,), **changes)


def test_differences_are_paired_and_gains_are_positive_where_the_compared_pipeline_is_better() -> None:
    pairs: dict[str, Any] = {"control": (TrialRun(0.5), TrialRun(0.7)), "compared": (TrialRun(0.6), TrialRun(0.6))}
    assert comparison(**pairs).gains == pytest.approx([0.1, -0.1])
    assert comparison(**pairs, better="lower").gains == pytest.approx([-0.1, 0.1])
    assert comparison(**pairs, better="lower").differences == pytest.approx([0.1, -0.1])


def test_the_table_has_a_row_for_start_control_compared_and_reference_with_means_and_spread() -> None:
    shown = comparison()
    assert [row[0] for row in shown.table.rows] == ["@base, the start of both", "control", "compared", "teacher, the reference"]
    assert "0.55 (± 0.05)" in repr(shown)
    assert "better in 3 of 3 seeds" in repr(shown)
    assert "55 % of the gap to teacher" in repr(shown)
    assert shown.verdict == "helps"


def test_each_seed_has_a_row_with_both_figures_and_their_difference() -> None:
    rows = comparison(seeds=(7, 8, 9)).seed_table.rows
    assert [[str(cell) if isinstance(cell, str) else cell.text() for cell in row] for row in rows] == [
        ["7", "0.5", "0.75", "+0.25"],
        ["8", "0.6", "0.84", "+0.24"],
        ["9", "0.55", "0.8", "+0.25"],
    ]


def test_the_html_holds_both_tables_the_verdict_and_both_pipelines() -> None:
    html = comparison()._repr_html_()
    assert html.count("<table") == 2
    assert "helps: accuracy +0.247" in html
    assert "distill soft" in html
    assert "tune finetune" in html


def test_if_less_is_better_a_win_keeps_its_real_sign() -> None:
    lower = {"control": tuple(map(TrialRun, (2.0, 2.0, 2.1))), "compared": tuple(map(TrialRun, (1.5, 1.4, 1.6)))}
    shown = comparison(metric="loss", better="lower", **lower, reference=("teacher", 1.0))
    assert shown.verdict == "helps"
    assert "loss -0.533 (95 % interval -0.677 to -0.39)" in shown.summary()
    assert shown.gap_share == pytest.approx(0.516, abs=1e-3)


def test_last_and_best_epoch_are_those_of_validation_data() -> None:
    shown = one_pair(TrialRun(0.5, (0.4, 0.6, 0.5)), TrialRun(0.75, (0.7, 0.8)))
    assert shown.table.head[2:] == ["validation, last epoch", "validation, best epoch"]
    assert "0.6 (epoch 2 of 3)" in repr(shown)
    assert "0.8 (epoch 2 of 2)" in repr(shown)
    less = one_pair(TrialRun(0.5, (0.4, 0.6)), TrialRun(0.7), better="lower")
    assert "0.4 (epoch 1 of 2)" in repr(less)


@pytest.mark.parametrize("compared", [0.5, 0.4])
def test_no_share_of_the_gap_is_shown_if_nothing_is_recovered(compared: float) -> None:
    assert "of the gap" not in one_pair(TrialRun(0.5), TrialRun(compared)).summary()


def test_one_seed_gives_no_verdict_and_no_interval_and_asks_for_more() -> None:
    shown = one_pair(TrialRun(0.5), TrialRun(0.75), reference=None)
    assert shown.summary() == "no verdict from one seed: accuracy +0.25; --seeds 5 gives an interval"
    assert shown.gap_share is None
    assert [row[0] for row in shown.table.rows][-1] == "compared"
    assert "difference" not in repr(shown)


def test_a_figure_that_is_not_finite_gives_no_verdict() -> None:
    assert comparison(compared=(TrialRun(0.7), TrialRun(float("nan")), TrialRun(0.8))).verdict == "no verdict: a figure is not finite"


def test_the_notes_of_the_first_pair_and_the_remarks_are_shown() -> None:
    shown = one_pair(TrialRun(0.5, notes=("label 2 -> 1",)), TrialRun(0.7, notes=("soft 3 -> 2",)), remarks=("the labels differ",))
    assert repr(shown).endswith("the labels differ\ncompared: soft 3 -> 2\ncontrol: label 2 -> 1")

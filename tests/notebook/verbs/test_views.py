"""The verbs that show something of versions, as a user writes them."""

from __future__ import annotations

import pytest


@pytest.fixture
def two(cells):
    """A notebook with two versions."""
    cells.give("%kd prune channels --ratio 0.5 --as slim")
    return cells


@pytest.mark.slow
@pytest.mark.parametrize("line", ["pareto", "layers", "sensitivity --bits 2", "weights", "confusion", "report"])
def test_a_picture_has_text_and_html_and_changes_nothing(two, line):
    history = two.session.history
    shown = two.give(f"%kd {line}")
    assert repr(shown)
    assert "0x" not in repr(shown)
    assert "<svg" in shown._repr_html_()
    assert two.session.history is history


def test_examples_shows_the_answers_that_changed(two):
    history = two.session.history
    shown = two.give("%kd examples @slim --against @base --items 3")
    assert shown.summary.startswith("@slim answers ")
    assert len(shown.examples) <= 3
    assert two.session.history is history
    assert {"@base", "@slim"} <= set(two.complete("%kd examples --against "))


@pytest.mark.slow
def test_pareto_takes_versions_and_figures(two):
    reported = two.give("%kd pareto @base @slim --cost parameters --quality loss")
    assert (reported.quality, reported.cost) == ("loss", "parameters")
    assert [point.name for point in reported.points] == ["@slim", "@base"]
    assert "did you mean parameters?" in str(two.fails("%kd pareto --cost paramters"))
    assert "@slim" in two.complete("%kd pareto @base @s")


@pytest.mark.slow
def test_layers_marks_what_patterns_mean(two):
    reported = two.give("%kd layers @slim --layers 0 '2'")
    assert [layer.name for layer in reported.marked] == ["0", "2"]
    assert "fits no module" in two.fails("%kd layers --layers conv9").message
    assert two.give("%kd layers @base").root.parameters > two.give("%kd layers").root.parameters


@pytest.mark.slow
def test_sensitivity_takes_layers_items_and_one_way_to_disturb(two):
    reported = two.give("%kd sensitivity @base --ratio 0.5 --layers 2 --items 8")
    assert [effect.name for effect in reported.effects] == ["2"]
    assert reported.items == 8
    assert "0.5 of the weights are zeroed" in repr(reported)
    assert "--bits" in two.fails("%kd sensitivity --bits 1").message


def test_weights_takes_two_versions_and_a_layer(two):
    reported = two.give("%kd weights @base @slim --layer 0")
    assert [(spread.version, spread.count) for spread in reported.spreads] == [("@base", 128), ("@slim", 64)]
    assert "'conv' fits no module" in two.fails("%kd weights --layer conv").message


def test_confusion_takes_any_data(two):
    reported = two.give("%kd confusion @base --data {loaders['a b']}")
    assert reported.count == 32
    assert two.give("%kd confusion").accuracy == two.session.head["accuracy"]
    assert "confusion needs data with labels, and the session has no 'none'" in two.fails("%kd confusion --data none").message


@pytest.mark.slow
def test_report_is_shown_or_written(two, tmp_path):
    reported = two.give("%kd report --version @base --cost parameters")
    assert "accuracy against parameters" in repr(reported)
    written = two.give(f"%kd report '{tmp_path}/slim one.html'")
    assert repr(written).startswith("the report on @slim was written to ")
    assert (tmp_path / "slim one.html").read_text().startswith("<!doctype html>")
    assert "is no name of an HTML file" in two.fails("%kd report slim.pdf").message
    assert "can't be written" in two.fails(f"%kd report {tmp_path}/none/slim.html").message
    assert "no version has a figure 'speed'" in two.fails("%kd report --cost speed").message


@pytest.mark.slow
def test_the_pictures_of_a_closed_notebook_stay_text_and_html(two):
    kept = two.give("%kd report")
    before = repr(kept), kept._repr_html_()
    two.give("%kd drop @slim")
    two.give("%kd tune finetune --steps 1")
    assert (repr(kept), kept._repr_html_()) == before


@pytest.mark.slow
def test_figures_and_layers_are_completed(two):
    assert two.complete("%kd pareto --cost par") == ["parameters"]
    assert two.complete("%kd compare --by s") == ["size"]
    assert {"0", "2"} <= set(two.complete("%kd layers --layers "))
    assert two.complete("%kd weights --layer 2") == ["2"]

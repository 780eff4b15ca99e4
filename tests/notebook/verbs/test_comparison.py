"""%kd compare-with, as a user writes it."""

from __future__ import annotations

import pytest


@pytest.fixture
def taught(cells):
    """A notebook whose head is a distilled version."""
    cells.give("%kd set --few {(train[0][:16], train[1][:16])} --teacher {big}")
    cells.give("%kd distill soft --epochs 2 --as taught")
    return cells


@pytest.mark.slow
def test_the_head_is_compared_with_labels_alone_in_one_line(taught):
    history = taught.session.history
    found = taught.give('%kd compare-with "tune finetune --data few" --same-loop --seeds 2')
    assert found.lines == ("distill soft --epochs 2", "tune finetune --epochs 2 --steps 2 --data few")
    assert len(found.compared) == 2
    assert found.reference[0] == "teacher"
    assert taught.session.history is history


@pytest.mark.slow
def test_same_takes_the_options_that_differ(taught):
    assert taught.give('%kd compare-with "same --alpha 0" --seeds 1').lines[1] == "distill soft --epochs 2 --alpha 0"


@pytest.mark.slow
def test_both_pipelines_can_have_several_stages_and_name_objects_of_the_notebook(taught):
    control = '"prune channels --ratio 0.25" "tune finetune --data {loaders[\'a b\']}"'
    found = taught.give(f'%kd compare-with {control} --stages "prune channels --ratio 0.75" "tune finetune" --on @base --seeds 1')
    assert found.lines[1].splitlines()[0] == "prune channels --ratio 0.25"
    assert found.lines[0].splitlines() == ["prune channels --ratio 0.75", "tune finetune"]
    assert "data" not in taught.session.objects


@pytest.mark.slow
def test_a_version_can_be_the_control_and_another_one_than_the_head_the_compared_one(taught):
    taught.give("%kd tune finetune --on @base --as labels")
    found = taught.give("%kd compare-with @labels --version @taught --seeds 1 --data {loaders['a b']}")
    assert found.lines == ("distill soft --epochs 2", "tune finetune")


@pytest.mark.slow
def test_the_result_has_text_and_html_and_can_be_kept(taught):
    shown = taught.give('%kd compare-with "tune finetune" --seeds 2 -o result')
    assert taught.shell.user_ns["result"] is shown
    assert "compared with a control, 2 seeds" in repr(shown)
    assert "<table" in shown._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("compare-with", "--control"),
        ('compare-with "same --ratio 0.5"', "no stage of the compared pipeline has this option"),
        ('compare-with "tune finetune" --seeds 0', "--seeds"),
        ('compare-with "tune finetune --epoch 3"', "tune finetune has no option --epoch"),
        ('compare-with "undo"', "undo is not a stage"),
        ('compare-with "tune finetune" --version @base', "no stage made @base"),
    ],
)
def test_what_can_not_be_compared_is_refused(taught, line, message):
    history = taught.session.history
    assert message in str(taught.fails(f"%kd {line}"))
    assert taught.session.history is history


def test_a_line_of_an_earlier_release_names_the_verb(taught):
    assert '%kd compare-with "tune finetune --data train" --same-loop' in str(taught.fails("%kd distill soft --control few --seeds 3"))


def test_help_shows_the_verb_and_its_example(bare):
    assert repr(bare.give("%kd help compare-with")).splitlines()[-1].endswith("--same-loop")

"""Drafts: pipelines as text, there and back, and what is said of them before they run."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from kdkit import notebook
from kdkit.errors import KdError
from kdkit.notebook.wizard.draft import Draft
from kdkit.notebook.wizard.validation import validate_draft

LINES = some.sampled_from(
    ["prune channels --ratio 0.25", "tune finetune --steps 3", "distill soft --teacher {nets['a b']}", "quantize static", "distill hints --steps 2"]
)
STEPS = some.lists(LINES, max_size=4).map(tuple)
DRAFTS = some.builds(Draft, STEPS, some.sampled_from(["", "@base"]), some.sampled_from(["", "slim", "two words"]), some.none() | some.integers(0, 5))


@pytest.mark.slow
@given(DRAFTS.filter(lambda draft: draft.steps))
@settings(deadline=None)
def test_a_draft_comes_back_from_the_cell_that_it_shows(draft):
    assert Draft.of(draft.cell) == draft


@pytest.mark.slow
@given(DRAFTS.filter(lambda draft: len(draft.steps) > 1), some.data())
@settings(deadline=None)
def test_steps_that_are_moved_are_the_same_steps(draft, data):
    at, by = data.draw(some.integers(0, len(draft.steps) - 1)), data.draw(some.sampled_from([-1, 1]))
    moved = draft.moved(at, by)
    assert sorted(moved.steps) == sorted(draft.steps)
    assert moved.steps[min(max(at + by, 0), len(draft.steps) - 1)] == draft.steps[at]


def test_a_group_is_written_read_and_taken_apart():
    draft = Draft(("prune channels", "distill soft", "tune finetune")).joined(2)
    assert draft.cell == "%%kd\nprune channels\ntogether:\n    distill soft\n    tune finetune"
    assert Draft.of(draft.cell) == draft
    assert draft.parted(1).steps == ("prune channels", "distill soft", "tune finetune")
    assert [stage.id for stage in draft.stages()] == ["prune.channels", "together"]


def test_a_stage_that_does_not_train_shares_no_loop():
    with pytest.raises(KdError, match="prune channels does not train"):
        Draft(("prune channels", "tune finetune")).joined(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "there is no stage"), ("%kd prune", "which technique"), ("%kd undo", "there is no"), ("%%kd\nprune chanels", "chanels")],
)
def test_what_is_no_pipeline_is_refused(text, message):
    with pytest.raises(KdError, match=message):
        Draft.of(text)


# judged


@pytest.fixture
def workspace(cells):
    return notebook.workspace_of(cells.shell)


def test_each_step_is_checked_and_one_that_cannot_follow_hides_no_other(workspace):
    verdicts = validate_draft(Draft(("quantize static", "prune channels", "tune finetune --steps 1")), workspace)
    assert [verdict.fits for verdict in verdicts] == [True, False, False]
    assert "with convert onnx inserted before it" in verdicts[0].html
    assert "put prune channels before quantize static (step 1)" in verdicts[1].html


def test_objects_of_the_notebook_count_as_given_and_the_session_is_left_as_it_is(workspace, cells):
    held = dict(cells.session.objects)
    (verdict,) = validate_draft(Draft(("distill soft --teacher {big} --data {loaders['a b']}",)), workspace)
    assert verdict.fits, verdict.html
    assert dict(cells.session.objects) == held
    (verdict,) = validate_draft(Draft(("distill soft --teacher nobody",)), workspace)
    assert "needs a model" in verdict.html


def test_an_expression_that_calls_something_is_not_called(workspace, cells):
    called = []
    cells.shell.push({"make": lambda: called.append(1)})
    validate_draft(Draft(("distill soft --teacher {make()}",)), workspace)
    assert not called


def test_a_step_that_cannot_be_read_is_reported_in_its_place(workspace):
    verdicts = validate_draft(Draft(("tune finetune --steps 1", "tune finetune --stepz 1", "quantize static")), workspace)
    assert [verdict.fits for verdict in verdicts] == [True, False]
    assert "--stepz" in verdicts[1].html


def test_a_version_that_is_gone_is_reported_at_every_step(workspace):
    verdicts = validate_draft(Draft(("tune finetune", "quantize static"), start="@gone"), workspace)
    assert [verdict.fits for verdict in verdicts] == [False, False]
    assert "no version @gone" in verdicts[0].html

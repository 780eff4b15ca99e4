"""Running again: a labelled run replaces the one before it, and `rerun` follows a change upstream."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from kdkit import KdError, Session, Stage, param
from kdkit.errors import Cancelled
from tests.fixtures import zoo
from tests.fixtures.noise import Noise

KINDS = {"error": ValueError, "interrupt": KeyboardInterrupt, "cancel": Cancelled}


class Add(Stage):
    """Add a number to the last layer's weights."""

    id: ClassVar = "tune.test-add"
    amount: float = param(1.0, "what is added")
    fails: str = param("", "error, interrupt or cancel")

    def apply(self, model, context):
        model.head.weight.data.add_(self.amount)
        if self.fails:
            raise KINDS[self.fails](self.fails)


@pytest.fixture
def session(offered):
    offered(Add, Noise)
    batch = zoo.batch("mlp")
    return Session(zoo.mlp(), eval=(batch.args[0], batch.labels), measures=("parameters",))


def added(session, version="@head"):
    """How much was added to the weights since the session began."""
    return round(float((session[version].model.head.weight - session.original.head.weight).mean().detach()), 3)


def names(session):
    return [version.name for version in session.versions]


def test_a_labelled_line_that_runs_again_starts_where_it_started_and_replaces_its_version(session):
    session.run("tune test-add", label="slim")
    again = session.run("tune test-add --amount 3", label="slim")
    assert added(session) == 3
    assert names(session) == ["@base", "@slim"]
    assert again.session_notes == ("replaces @1 (tune test-add); %kd restore @1 brings it back",)
    assert session.undo().name == "@base"
    assert session.redo().name == "@slim"


def test_what_was_built_on_the_old_version_is_kept_and_marked(session):
    session.run("tune test-add", label="slim")
    session.run("tune test-add --amount 10", label="tuned")
    again = session.run("tune test-add --amount 2", label="slim")
    assert [(version.name, version.made_by) for version in session.versions[1:]] == [
        ("@1", "tune test-add (the old @slim)"),
        ("@tuned", "tune test-add --amount 10 (on the old @slim)"),
        ("@slim", "tune test-add --amount 2"),
    ]
    assert added(session, "@tuned") == 11
    assert session.head.name == "@slim"
    assert "%kd rerun @tuned builds on this one" in again.session_notes[0]


@pytest.mark.slow
def test_the_next_labelled_line_then_builds_on_the_new_version_and_takes_its_label(session):
    for amount in (1, 2):
        session.run(f"tune test-add --amount {amount}", label="slim")
        session.run("tune test-add --amount 10", label="tuned")
    assert added(session, "@tuned") == 12
    session.run("tune test-add --amount 20", label="tuned")
    assert added(session, "@tuned") == 22


@pytest.mark.slow
def test_a_cell_of_several_stages_runs_again_from_where_its_first_stage_started(session):
    session.run("tune test-add --amount 5", label="first")
    for _ in range(2):
        session.run("tune test-add --amount 1\ntune test-add --amount 2", label="small")
    assert added(session) == 8
    assert len(session.versions) == 4
    session.run("tune test-add --amount 1\ntune test-add --amount 2\ntune test-add --amount 3", label="small")
    assert added(session) == 11


@pytest.mark.slow
def test_a_line_that_names_its_start_replaces_what_it_made_from_there(session):
    session.run("tune test-add", label="slim")
    session.run("tune test-add --amount 2", on="@base", label="slim")
    assert (added(session), len(session.versions)) == (2, 2)
    session.run("tune test-add --amount 4", on="@slim", label="slim")
    assert (added(session), len(session.versions)) == (6, 3)


def test_after_undo_the_line_still_replaces_its_version(session):
    session.run("tune test-add", label="slim")
    session.undo()
    session.run("tune test-add --amount 2", label="slim")
    assert names(session) == ["@base", "@slim"]


def test_a_label_of_another_branch_moves_and_its_version_stays(session):
    session.run("tune test-add --amount 1", label="slim")
    session.run("tune test-add --amount 2", on="@base", label="other")
    session.run("tune test-add --amount 4", label="slim")
    assert added(session) == 6
    assert names(session) == ["@base", "@1", "@other", "@slim"]


def test_a_label_that_a_model_had_which_no_stage_made_moves(session):
    session.run("tune test-add", label="base")
    assert names(session) == ["@0", "@base"]
    session.run("tune test-add --amount 2", label="base")
    assert added(session) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("again", ["run", "rerun"])
def test_a_run_again_that_fails_or_is_interrupted_leaves_everything_as_it_was(session, how, again):
    session.run("tune test-add", label="slim")
    session.run("tune test-add\ntune test-add", label="small")
    before = session.history
    if again == "run":
        with pytest.raises((KdError, KeyboardInterrupt)):
            session.run(f"tune test-add --amount 7\ntune test-add --fails {how}", label="small")
    else:
        Add.apply, apply = lambda self, model, context: (_ for _ in ()).throw(KINDS[how](how)), Add.apply
        try:
            with pytest.raises((KdError, KeyboardInterrupt)):
                session.rerun("@small")
        finally:
            Add.apply = apply
    assert session.history is before
    assert session.removed == ()


@pytest.mark.slow
def test_rerun_builds_on_the_version_in_place_of_a_replaced_one(session):
    session.run("tune test-add", label="slim")
    session.run("tune test-add --amount 10", label="tuned")
    session.run("tune test-add --amount 2", label="slim")
    session.rerun("@tuned")
    assert added(session) == 12
    assert [(version.name, version.mark) for version in session.versions] == [("@base", ""), ("@slim", ""), ("@tuned", "")]
    assert sorted(version.number for version in session.removed) == [1, 2]


@pytest.mark.slow
def test_rerun_runs_all_lines_with_their_seeds_or_with_another(session):
    first = session.run("tune test-noise", label="noisy", seed=3).model.head.weight
    session.run("tune test-add", label="small")
    session.rerun("@small")
    assert torch.equal(session["@noisy"].model.head.weight, first)
    session.rerun("@small", seed=4)
    assert not torch.equal(session["@noisy"].model.head.weight, first)
    assert [version.seed for version in session.versions[1:]] == [4, 4]
    assert names(session) == ["@base", "@noisy", "@small"]


@pytest.mark.slow
def test_each_version_of_a_chain_says_which_one_it_replaces(session):
    session.run("tune test-add", label="slim")
    session.run("tune test-add --amount 10", label="tuned")
    session.rerun("@tuned")
    assert [(version.name, version.session_notes) for version in session.versions[1:]] == [
        ("@slim", ("replaces @1 (tune test-add); %kd restore @1 brings it back",)),
        ("@tuned", ("replaces @2 (tune test-add --amount 10); %kd restore @2 brings it back",)),
    ]


def test_after_rerun_a_cell_still_knows_where_it_started(session):
    session.run("tune test-add --amount 1\ntune test-add --amount 2", label="small")
    session.rerun("@small")
    session.run("tune test-add --amount 5", label="small")
    assert added(session) == 5


def test_rerun_of_a_version_that_no_stage_made_is_refused(session):
    with pytest.raises(KdError, match="no stage made @base"):
        session.rerun("@base")


def test_a_plan_predicts_the_run_from_where_it_would_start(session):
    session.run("decompose svd --ratio 0.5", label="thin")
    assert session.plan("decompose svd --ratio 0.5", label="thin").steps[0].parameters == session["@base"]["parameters"]

"""Runs in another process: every stage gives there what it gives here, reports progress, stops when asked, and fails with the same error."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch import nn

import kdkit
from kdkit import Context, KdError, Session, Stage
from kdkit.errors import Cancelled
from kdkit.models import private_copy
from kdkit.plugins.manager import manager
from kdkit.session.execution import raise_problems
from kdkit.stages import Outcome, Progress, object_names, pack, run_packed, run_stage, unpack
from kdkit.stages.channel import LocalChannel, SilentChannel
from kdkit.tasks import Classification
from kdkit.testing import zoo
from kdkit.testing.fingerprint import changes, fingerprint
from kdkit.testing.samples import instances_to_try
from kdkit.testing.trial_setup import TrialSetup, set_up_trial
from tests.fixtures.worker import Worker

FIRST_PARTY = sorted(id for id, stage in manager().stages().items() if stage.__module__.partition(".")[0].startswith("kdkit_"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def tried(id: str) -> tuple[Stage, TrialSetup, Outcome, list[Progress]]:
    """A stage, the first model of the zoo that it accepts, its outcome in this process, and the progress that it reported."""
    reasons = {}
    for stage, name in itertools.product(instances_to_try(manager().stage(id)), zoo.MODELS):
        reported: list[Progress] = []
        try:
            found = set_up_trial(stage, name)
            context = found.context(stage, observe=reported.append)
            raise_problems(stage, found.model, context)
            return stage, found, run_stage(stage, private_copy(found.model), context), reported
        except KdError as error:
            reasons[name] = error.message
    raise AssertionError(f"{id} refuses every model: {reasons}")


@pytest.mark.slow
@pytest.mark.parametrize("id", FIRST_PARTY)
def test_every_stage_gives_the_same_outcome_in_another_process(worker: Worker, id: str) -> None:
    stage, found, local, reported = tried(id)
    arrived: list[Progress] = []
    remote = worker.run(stage, private_copy(found.model), found.context(stage, observe=arrived.append))
    assert not changes(fingerprint(local.model.eval()), fingerprint(remote.model.eval()))
    assert remote.notes == local.notes
    assert list(map(repr, remote.attachments)) == list(map(repr, local.attachments))
    assert remote.renamed == local.renamed
    assert [(each.done, each.total, each.text) for each in arrived] == [(each.done, each.total, each.text) for each in reported]


class Steps(Stage):
    """Count up to a number; add the step to every weight."""

    id: ClassVar = "tune.test-steps"
    steps: int = kdkit.param(3, "number of steps")
    fails: bool = kdkit.param(False, "raise an error at the end")
    scale: str = kdkit.param("", "a factor", names="object")

    def apply(self, model: nn.Module, context: Context) -> None:
        for step in range(self.steps):
            context.progress(step, self.steps, "counting", step=float(step))
            for weight in model.parameters():
                weight.data += step
        context.note(f"{self.steps} steps, {sorted(context.objects)}")
        context.note_rename("before", "after")
        if self.fails:
            model.weight.data /= 0
            raise ZeroDivisionError("at the end")


class Runner:
    """A plugin that runs every stage in the worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @kdkit.hookimpl
    def kdkit_run_stage(self, stage: Stage, model: nn.Module, context: Context) -> Outcome:
        return self.worker.run(stage, model, context)


@pytest.fixture
def session(offered) -> Session:
    offered(Steps)
    torch.manual_seed(0)
    return Session(nn.Linear(4, 3), eval=(torch.randn(8, 4), torch.arange(8) % 3), scale=2.0, measures=("parameters",))


@pytest.fixture
def remote(worker: Worker) -> Iterator[None]:
    manager().register(Runner(worker), "test-runner")
    yield
    manager().unregister(name="test-runner")


@pytest.mark.slow
def test_notes_and_renamed_layers_of_a_remote_run_are_in_the_version(session: Session, remote: None) -> None:
    made = session.run("tune test-steps --scale scale")
    assert made.notes == ("3 steps, ['example', 'scale']",)
    assert made.renamed == {"before": "after"}


@pytest.mark.slow
def test_notes_of_a_plugin_around_a_remote_run_follow_those_of_the_stage(session: Session, remote: None) -> None:
    class Around:
        @kdkit.hookimpl(wrapper=True)
        def kdkit_run_stage(self, context: Context) -> Iterator[None]:
            outcome = yield
            context.note("around it")
            return outcome

    manager().register(Around(), "test-around")
    try:
        assert session.run("tune test-steps").notes == ("3 steps, ['example']", "around it")
    finally:
        manager().unregister(name="test-around")


def test_progress_of_a_remote_run_arrives_in_order(session: Session, remote: None) -> None:
    arrived: list[Progress] = []
    session.run("tune test-steps", observe=arrived.append)
    counted = [each for each in arrived if each.text == "counting"]
    assert [(each.stage, each.done, each.total, dict(each.figures)) for each in counted] == [("tune test-steps", step, 3, {"step": step}) for step in range(3)]


def test_cancelling_stops_a_remote_run_and_commits_nothing(session: Session, remote: None) -> None:
    def observe(progress: Progress) -> None:
        if progress.text == "counting":
            session.cancel()

    with pytest.raises(Cancelled, match="tune test-steps was cancelled"):
        session.run("tune test-steps --steps 10_000_000", observe=observe)
    assert len(session.versions) == 1
    assert session.run("tune test-steps").number == 1


def test_an_error_in_the_other_process_reads_as_it_does_here(session: Session, worker: Worker) -> None:
    with pytest.raises(KdError) as here:
        session.run("tune test-steps --fails")
    manager().register(Runner(worker), "test-runner")
    try:
        with pytest.raises(KdError) as there:
            session.run("tune test-steps --fails")
    finally:
        manager().unregister(name="test-runner")
    assert str(there.value) == str(here.value)
    assert "line " in str(there.value)
    assert 'raise ZeroDivisionError("at the end")' in str(there.value)
    assert len(session.versions) == 1


class Refuses(Stage):
    """Raise an error for the user."""

    id: ClassVar = "tune.test-refuses"

    def apply(self, model: nn.Module, context: Context) -> None:
        raise KdError("nothing to tune", "add a layer")


class Unloadable(Exception):
    """An exception that can be pickled and can't be loaded."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


class Breaks(Stage):
    """Raise an exception that pickle can't restore."""

    id: ClassVar = "tune.test-breaks"

    def apply(self, model: nn.Module, context: Context) -> None:
        raise Unloadable("too", " bad")


@pytest.mark.parametrize(("stage", "message"), [(Refuses, "nothing to tune"), (Breaks, "tune test-breaks failed: Unloadable: too bad")])
def test_any_error_survives_the_way_back(stage: type[Stage], message: str) -> None:
    with pytest.raises(KdError, match=message):
        unpack(run_packed(pack(stage(), nn.Linear(2, 2), Context(Classification(), stage=stage().title), SilentChannel())))


def test_an_object_that_cannot_be_pickled_is_named() -> None:
    context = Context(Classification(), stage="tune test-steps", objects={"scale": (number for number in range(3))})
    with pytest.raises(KdError, match=r"tune test-steps can't run in another process: 'scale' can't be pickled"):
        pack(Steps(scale="scale"), nn.Linear(2, 2), context, SilentChannel())


def test_only_the_objects_that_a_stage_may_use_travel(session: Session) -> None:
    from kdkit_distill.response.soft import Soft
    from kdkit_prune.channels import Channels

    session.set(train=(torch.randn(8, 4), torch.arange(8) % 3), teacher=nn.Linear(4, 3), other=nn.Linear(4, 3))
    assert object_names(Soft(), session.objects) == {"train", "teacher", "eval"}
    assert object_names(Channels(), session.objects) == {"train"}
    assert object_names(Channels(statistics=0), session.objects) == set()
    assert object_names(Steps(scale="scale"), session.objects) == {"scale"}
    detached = Context(Classification(), objects=session.objects).detached({"scale", "@base", "absent"})
    assert set(detached.objects) == {"scale", "@base", "example"}
    assert isinstance(detached.objects["@base"], nn.Linear)


class Centred(Stage):
    """Subtract the mean of calibration data from the weights, where there is some."""

    id: ClassVar = "tune.centred"

    def optional_inputs(self) -> kdkit.Needs:
        return kdkit.Needs(calibration=True)

    def apply(self, model: nn.Module, context: Context) -> None:
        mean = sum(float(batch.args[0].mean()) for batch in context.calibration(1)) if context.has_calibration else 1.0
        for weight in model.parameters():
            weight.data.sub_(mean)


def test_what_a_stage_can_do_without_is_sent_where_the_session_has_it(worker: Worker) -> None:
    images = [torch.full((2, 3), 2.0)]
    net = nn.Linear(3, 3)
    for given, expected in (({}, 1.0), ({"eval": images}, 1.0), ({"train": images}, 2.0), ({"eval": images, "calibration": images}, 2.0)):
        session = Session(net, **given)
        context = Context(task=session.task, objects=session.objects, original=net)
        assert object_names(Centred(), session.objects) == ({"train", "calibration"} & set(given))
        moved = worker.run(Centred(), private_copy(net), context).model
        assert torch.allclose(moved.bias, net.bias - expected)


@pytest.mark.slow
def test_a_function_of_a_cell_and_its_model_class_can_run_in_another_process(worker: Worker) -> None:
    cell = """
import torch, kdkit
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
    def forward(self, x):
        return self.fc(x) * FACTOR

FACTOR = 2.0

@kdkit.stage("tune.test-cell")
def cell(model, context, *, by: float = kdkit.param(0.5, "factor")):
    "Scale the weights."
    model.fc.weight.data *= by
"""
    variables = {"__name__": "__main__"}
    exec(cell, variables)
    try:
        net = variables["Net"]()
        outcome = worker.run(variables["cell"](by=0.25), private_copy(net), Context(Classification(), channel=LocalChannel()))
        assert type(outcome.model) is variables["Net"]
        assert torch.equal(outcome.model.fc.weight, net.fc.weight * 0.25)
        assert torch.equal(outcome.model(torch.eye(2)), outcome.model.fc(torch.eye(2)) * 2)
    finally:
        manager().get_plugin("notebook").stages.pop("tune.test-cell")
        manager().forget()

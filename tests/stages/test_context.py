"""The context: objects by name, results, progress and cancellation, and what is left of it in another process."""

from __future__ import annotations

import pickle
from dataclasses import replace
from threading import Event

import cloudpickle
import pytest
import torch
from torch import nn

from kdkit import Context, KdError
from kdkit.data import BatchList, Data
from kdkit.errors import Cancelled
from kdkit.stages import LocalChannel, Outcome, Progress, RunSpec
from kdkit.tasks import Classification

TRAIN = BatchList([torch.zeros(2, 3), torch.ones(2, 3)], "train")
EVAL = BatchList([torch.full((2, 3), 2.0)], "eval")


def context(**facts) -> Context:
    return Context(Classification(), stage="prune mine", **facts)


def test_the_settings_of_a_run_are_plain_data_that_the_context_reads() -> None:
    spec = RunSpec("prune mine", seed=3, device="cuda", backend="int8", scratch="/tmp/here")
    run = Context(Classification(), spec)
    assert (run.stage, run.seed, run.device, run.backend, run.scratch) == ("prune mine", 3, "cuda", "int8", "/tmp/here")
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_copy_with_another_seed_shares_notes_and_channel() -> None:
    run = context(seed=3)
    other = replace(run, seed=4)
    assert (run.seed, other.seed, other.stage) == (3, 4, "prune mine")
    assert other.notes is run.notes
    assert other.channel is run.channel


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="sed"):
        context(sed=3)


def test_a_missing_object_is_named_with_the_stage_and_the_line_that_adds_it() -> None:
    with pytest.raises(KdError, match="prune mine needs object 'scale', and the session has no such object") as caught:
        context(objects={"train": TRAIN, "eval": None}).named("scale")
    assert caught.value.hints == ("%kd set --scale {your_scale}", "named objects: train")


@pytest.mark.parametrize(
    ("names", "first"), [(("train", "eval", "example"), "example"), (("train", "eval"), "eval"), (("train", "calibration"), "train"), (("calibration",), "calibration")]
)
def test_an_example_batch_comes_from_example_then_eval_then_train_then_calibration(names, first) -> None:
    objects = {name: BatchList([torch.full((1, 1), float(number))], name) for number, name in enumerate(names)}
    assert context(objects=objects).example.args[0].item() == names.index(first)


@pytest.mark.parametrize(("names", "first"), [(("eval", "train", "calibration"), "calibration"), (("eval", "train"), "train"), (("eval", "example"), "eval")])
def test_calibration_batches_come_from_calibration_then_train_then_eval(names, first) -> None:
    objects = {name: BatchList([torch.full((1, 1), float(number))], name) for number, name in enumerate(names)}
    assert [batch.args[0].item() for batch in context(objects=objects).calibration()] == [names.index(first)]


def test_calibration_stops_after_so_many_batches() -> None:
    assert len(list(context(objects={"train": TRAIN}).calibration(1))) == 1
    assert len(list(context(objects={"train": TRAIN}).calibration())) == 2


def test_without_data_there_is_neither_an_example_nor_calibration() -> None:
    with pytest.raises(KdError, match="needs one batch of inputs"):
        _ = context().example
    with pytest.raises(KdError, match="needs calibration data"):
        list(context().calibration())


def test_a_session_without_a_teacher_is_taught_by_its_original() -> None:
    original, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    with context(original=original).teacher() as found:
        assert found is original
        assert not found.training
        assert not any(weight.requires_grad for weight in found.parameters())
    assert original.training
    with context(original=original, objects={"teacher": teacher}).teacher() as found:
        assert found is teacher
    with context(original=original, objects={"teacher": teacher}).teacher("original") as found:
        assert found is original


def test_what_a_stage_noted_is_in_its_outcome() -> None:
    run, model = context(), nn.Linear(2, 2)
    run.note("three layers")
    run.attach("a table")
    run.note_rename("fc", "fc.0")
    assert run.outcome(model) == Outcome(model, ("three layers",), ("a table",), {"fc": "fc.0"})


def test_progress_goes_through_the_channel() -> None:
    reported: list[Progress] = []
    context(observe=reported.append).progress(1, 2, "half", loss=0.5)
    assert reported == [Progress("prune mine", 1, 2, "half", {"loss": 0.5})]


def test_a_cancelled_stage_stops_at_its_next_progress_and_reports_no_more() -> None:
    reported: list[Progress] = []
    stop = Event()
    run = context(observe=reported.append, cancelled=stop)
    run.progress(0, 2)
    stop.set()
    with pytest.raises(Cancelled, match="prune mine was cancelled"):
        run.progress(1, 2)
    assert len(reported) == 1


def test_a_callback_of_its_own_keeps_the_cancellation_of_the_channel() -> None:
    channel = LocalChannel()
    run = replace(context(channel=channel), observe=lambda progress: None)
    channel.cancel()
    with pytest.raises(Cancelled):
        run.check_cancelled()


def test_a_detached_context_is_values_alone() -> None:
    class Bound(dict):
        def __reduce__(self):
            raise TypeError("bound to a session")

    objects = Bound(train=TRAIN, eval=EVAL, scale=2.0, hook=(number for number in range(3)))
    run = context(objects=objects, original=nn.Linear(2, 2), observe=lambda progress: None)
    run.note("here")
    sent = cloudpickle.loads(cloudpickle.dumps(run.detached(["scale", "train", "absent"])))
    assert set(sent.objects) == {"scale", "train", "example"}
    assert torch.equal(sent.example.args[0], EVAL.example().args[0])
    assert torch.equal(sent.original.weight, run.original.weight)
    assert (sent.stage, sent.notes, run.notes) == ("prune mine", [], ["here"])
    sent.progress(1, 2)


@pytest.mark.parametrize(
    "data",
    [
        Data(lambda: [torch.zeros(3, 2)], "a lambda"),
        Data(lambda: [torch.zeros(3, 2)], "a stream").take(2),
        TRAIN,
        TRAIN.take(3),
    ],
    ids=lambda data: data.why,
)
def test_data_can_be_sent_to_another_process(data: Data) -> None:
    sent = cloudpickle.loads(cloudpickle.dumps(data))
    assert [batch.args[0].tolist() for batch in sent] == [batch.args[0].tolist() for batch in data]


def test_old_names_work_and_warn() -> None:
    reported: list[Progress] = []
    run = context()
    with pytest.warns(DeprecationWarning, match="Context.exhibit"):
        run.exhibit("a table")
    assert run.attachments == ["a table"]
    with pytest.warns(DeprecationWarning, match="Context.observe"):
        run.observe = reported.append
    run.progress(0, 1)
    assert len(reported) == 1
    with pytest.warns(DeprecationWarning, match="Context.cancelled"):
        assert not run.cancelled.is_set()
    with pytest.warns(DeprecationWarning, match="Context.cancelled"):
        run.cancelled.set()
    with pytest.raises(Cancelled):
        run.progress(1, 1)

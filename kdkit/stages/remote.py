"""Running a stage in another process or on another machine: a run is packed into bytes, and its outcome comes back as bytes.

A runner plugin moves the bytes: `pack` here, `run_packed` there, `unpack` here. An engine that pickles by itself with
cloudpickle, as Ray and Dask do, can send `context.detached(object_names(...))` to `run_stage` instead.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kdkit.errors import KdError, describe_exception, read_message
from kdkit.guards.error_location import describe_error, remember_error_line
from kdkit.guards.random_state import seeded
from kdkit.stages.channel import Channel
from kdkit.stages.context import Context
from kdkit.stages.data_sources import CALIBRATION, OPTIONAL_CALIBRATION, first_source
from kdkit.stages.pickling import pickle_value
from kdkit.stages.run import Outcome
from kdkit.stages.stage import Stage


def object_names(stage: Stage, objects: Mapping[str, Any]) -> set[str]:
    """The names of the objects that a stage may use: those that its options name, those that it needs, and those that it uses where they are there.

    Args:
        objects: the session's, to choose the data that serves as calibration data.
    """
    needs, optional = stage.required_inputs(), stage.optional_inputs()
    names = {name for _, _, name in stage.named_objects()}
    names |= {name for name in ("train", "teacher", "tokenizer") if getattr(needs, name) or getattr(optional, name)}
    names |= {"eval"} if needs.train else set()
    sources = CALIBRATION if needs.calibration else OPTIONAL_CALIBRATION if optional.calibration else ()
    calibration = first_source(objects, sources)
    return names if calibration is None else names | {calibration}


def run_stage(stage: Stage, model: Any, context: Context) -> Outcome:
    """Apply a stage to a model that nobody else uses, seeded as in the session's own process."""
    with seeded(context.seed):
        changed = stage.apply(model, context)
    return context.outcome(model if changed is None else changed)


def pack(stage: Stage, model: Any, context: Context, channel: Channel) -> bytes:
    """One run as bytes for `run_packed`: the stage, the model, and the objects that the stage may use.

    Args:
        channel: what the stage reports to there; it must be picklable.

    Raises:
        KdError: an object can't be pickled; the message names it.
    """
    detached = context.detached(object_names(stage, context.objects))
    try:
        return pickle_value((stage, model, detached, channel))
    except Exception as error:
        what = _unpicklable({"the stage": stage, "the model": model, "the channel": channel, **{f"{name!r}": value for name, value in detached.objects.items()}})
        raise KdError(f"{stage.title} can't run in another process: {what or 'its context'} can't be pickled: {read_message(error)}", "run it in this process") from error


def run_packed(run: bytes) -> bytes:
    """Execute a packed run and return its outcome, or the error that it raised, as bytes for `unpack`."""
    stage = None
    try:
        stage, model, context, channel = pickle.loads(run)
        return pickle_value(run_stage(stage, model, replace(context, channel=channel)))
    except BaseException as error:
        return pickle_value(_portable(error, stage))


def unpack(result: bytes) -> Outcome:
    """The outcome of a run.

    Raises:
        BaseException: what the stage raised.
    """
    outcome = pickle.loads(result)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _unpicklable(values: Mapping[str, Any]) -> str:
    """The first of some values that can't be pickled."""
    for name, value in values.items():
        try:
            pickle_value(value)
        except Exception:
            return name
    return ""


def _survives_pickling(error: BaseException) -> bool:
    """Whether an error is of the same class after pickling; the class may be unknown elsewhere, or need other arguments than it keeps."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:  # the constructor of the error's class may raise anything; the caller reports the error itself
        return False


def _portable(error: BaseException, stage: Stage | None) -> BaseException:
    """An error that survives pickling and still names its line; a `KdError` with the same text where the error's class does not."""
    if stage is None:
        return KdError(f"the run can't be loaded in the other process: {describe_exception(error)}", "install there what the stage, the model and the data need")
    remember_error_line(error, type(stage).__module__)
    if _survives_pickling(error):
        return error
    return KdError(f"{stage.title} failed: {describe_error(error, type(stage).__module__)}")

"""The data and models that a view names, found in a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdkit.data import Data
from kdkit.errors import KdError, did_you_mean
from kdkit.session.adoption import adopt_model
from kdkit.tasks import Task

if TYPE_CHECKING:
    from torch import nn

    from kdkit.session.session import Session


def find_data(session: Session, name: str, need: str) -> tuple[Data, Task]:
    """A data set of a session, and the task that evaluates on it.

    Args:
        need: what the data is for, for the message.

    Raises:
        KdError: there is no such data set.
    """
    found = session.objects.get(name)
    if found is None or session.task is None:
        raise KdError(f"{need}, and the session has no {name!r}", "%kd set --eval {loader}, or --data {loader}")
    return session.objects.adopt(found, session.settings["batch_size"]), session.task


def find_model(session: Session, name: str) -> tuple[str, nn.Module]:
    """A model of a session by the name of an object or a version: (what to call it, the model).

    "teacher" is the original model if the session has no teacher.

    Raises:
        KdError: there is no such model.
    """
    if name.startswith("@"):
        version = session.version(name)
        return version.name, session.history.model_of(version)
    if session.objects.get(name) is not None:
        return name, adopt_model(session.objects[name])
    if name == "teacher":
        return "the original", session.original
    raise KdError(f"there is no model {name!r}", did_you_mean(name, session.objects), f"%kd set --{name} {{{name}}}, or name a version: @base")

"""What a plugin's view receives: a session whose models are copies, so that the view can't change a version."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdkit.models.copies import private_copy
from kdkit.session.events import ObservedVersion

if TYPE_CHECKING:
    from torch import nn


class ViewedVersion(ObservedVersion):
    """A version whose `model` is a private copy, made when it is first used."""

    @property
    def model(self) -> nn.Module | None:
        """The copy; None once the version was dropped."""
        held = vars(self)
        if "copied" not in held:
            held["copied"] = None if held["model"] is None else private_copy(held["model"])
        return held["copied"]

    @model.setter
    def model(self, model: nn.Module | None) -> None:
        """Of a `dataclasses.replace`, which passes the copy on."""
        vars(self)["copied"] = model


def with_copied_models(session: Any) -> Any:
    """A session that shares all but the models of its versions and the original model with `session`."""
    viewed = copy.copy(session)
    viewed.history = replace(session.history, versions={number: ViewedVersion.of(version) for number, version in session.history.versions.items()})
    viewed.original = private_copy(session.original)
    return viewed

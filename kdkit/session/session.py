"""The session: a model, its data, and the versions that stages made of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from kdkit.guards.torch_modes import restore_torch_modes
from kdkit.models.copies import have_equal_tensors, private_copy
from kdkit.models.wrappers import unwrap_model, unwrap_parts
from kdkit.session import showing
from kdkit.session.adoption import adopt_model
from kdkit.session.history import checked
from kdkit.session.listing import Listing
from kdkit.session.loading import load_version
from kdkit.session.running import Observe
from kdkit.session.settings import accept_settings, check_names, document_settings
from kdkit.session.stage_runs import StageRuns
from kdkit.session.version_files import VersionFiles
from kdkit.session.version_moves import VersionMoves
from kdkit.stages.context import Context


@document_settings
@restore_torch_modes
class Session(StageRuns, VersionMoves, VersionFiles):
    """A model, its data, and every version that stages made of it.

    Args:
        model: an nn.Module in memory; it is copied and never changed.
        SETTINGS
        label: label of the first version.
        objects: any other objects that stages may name.

    Data is taken in any form that `kdkit.session.adoption.adopt_data` converts. None means that a setting is not given.

    >>> import torch
    >>> session = Session(torch.nn.Linear(4, 3), eval=(torch.randn(8, 4), torch.arange(8) % 3), measures=("quality", "parameters"))
    >>> session.head.name
    '@base'
    """

    @accept_settings
    def __init__(self, model: Any, *, label: str = "base", **objects: Any) -> None:
        label = checked(label)
        self._begin()
        self.original = unwrap_parts(private_copy(adopt_model(model))).eval()
        given = {name: value for name, value in objects.items() if value is not None}
        check_names(given)
        self.set(**given)
        self._adopt(self.original, label, f"use {type(self.original).__name__}")

    @classmethod
    def open(cls, path: str | Path, skeleton: Any = None, **given: Any) -> Session:
        """A new session that begins with a saved version.

        Args:
            path: a folder that `save` wrote.
            skeleton: as for `load`.
            given: data and settings, as for `Session`.
        """
        loaded = load_version(path, skeleton)
        with loaded.explain_failures():
            session = cls(loaded.model, **{"label": loaded.label or "base", **given})
        session.history = session.history.replaced(loaded.describe(session.head))
        if session.head.storage is not None:
            session.evaluate()  # its size is that of the stored form
        return session

    def began_with(self, model: Any) -> bool:
        """Whether the session began with the weights that a model has now; also of a model that a plugin converted, which can't be compared."""
        return not isinstance(model, nn.Module) or have_equal_tensors(self.original, unwrap_model(model))

    def pop(self, version: Any = None) -> nn.Module:
        """A copy of the version's model that is yours to change; default: the head's."""
        return private_copy(self.history.model_of(self.version(version)))

    # showing

    def compare(self, *versions: Any) -> Listing:
        """Versions side by side, each figure with its ratio to the first version's; default: all versions."""
        chosen = tuple(self.version(version) for version in versions) or self.versions
        return Listing(chosen, self.history.head, chosen[0], f"against {chosen[0].name}")

    def to_dataframe(self) -> Any:
        """All versions as a pandas DataFrame: see `Listing.to_dataframe`."""
        return self.compare().to_dataframe()

    def show(self, view: Any, *, observe: Observe | None = None, **objects: Any) -> Any:
        """Show a view of the session; the session does not change.

        Args:
            view: a line such as "pareto --cost latency", or a `kdkit.views.View`.
            observe: callback that receives progress.
            objects: data and models that the view names, for this call only.

        Raises:
            KdError: there is no such view, or it can't be shown.
            Cancelled: `cancel` was called.

        >>> import torch
        >>> session = Session(torch.nn.Linear(4, 3), eval=(torch.eye(4), torch.arange(4) % 3), measures=("quality", "parameters"))
        >>> session.show("pareto --cost parameters").frontier[0].name
        '@base'
        """
        snapshot = copy.copy(self)
        snapshot.objects, snapshot._observe = self.objects.updated(objects, self.settings["batch_size"]), observe
        return showing.show(showing.read_view(view) if isinstance(view, str) else view, snapshot)

    @contextlib.contextmanager
    def working(self, title: str) -> Iterator[Context]:
        """For a view that works long: a context whose progress is observed and which `cancel` stops. No stage can run meanwhile.

        Args:
            title: what is computed, for progress messages.

        Raises:
            KdError: a stage is running.
        """
        with self._busy(self._observe) as observe:
            yield self._context(title, observe)

    def __getattr__(self, name: str) -> Any:
        """Methods that views replaced: `session.pareto(...)` was `session.show("pareto ...")`."""
        method = None if name.startswith("_") else showing.replaced_method(name, self.show)
        if method is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return method

    def __repr__(self) -> str:
        return repr(self.status())

    def _repr_html_(self) -> str:
        return self.status()._repr_html_()

"""The context: what a stage can ask of kdkit while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from threading import Event
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kdkit.errors import Cancelled, KdError
from kdkit.renaming import warn_renamed
from kdkit.stages.channel import Channel, LocalChannel, Progress, RelayChannel, SilentChannel
from kdkit.stages.data_sources import CALIBRATION, EXAMPLE, OPTIONAL_CALIBRATION, first_data, first_source
from kdkit.stages.run import Outcome, RunSpec

if TYPE_CHECKING:
    from torch import nn

    from kdkit.data import Batch, Data
    from kdkit.tasks import Task


@dataclass(init=False, eq=False)
class Context:
    """What `apply` receives besides its private copy of the model.

    Args:
        observe: progress callback, in place of the channel's.
        cancelled: event that asks the stage to stop, in place of the channel's.
        settings: fields of `RunSpec`, such as `seed=3`, that differ from `spec`.

    Attributes:
        task: turns outputs and a batch into losses and metrics.
        spec: the settings of this run; `seed`, `device`, `backend`, `scratch` and `stage` read them.
        objects: the session's named objects: data sets, teachers, tokenizers, functions.
        original: the session's first model, in eval mode; a stage must not change it.
        channel: takes progress, and knows whether the user cancelled.
        notes: lines for the report, see `note`.
        attachments: tables and charts, see `attach`.
        renamed: old -> new layer names, see `note_rename`.

    >>> from kdkit.tasks import Classification
    >>> context = Context(Classification(), seed=3, objects={"scale": 2.0})
    >>> context.seed, context.named("scale")
    (3, 2.0)
    """

    task: Task
    spec: RunSpec
    objects: Mapping[str, Any]
    original: nn.Module | None
    channel: Channel
    notes: list[str]
    attachments: list[Any]
    renamed: dict[str, str]

    def __init__(
        self,
        task: Task,
        spec: RunSpec | None = None,
        objects: Mapping[str, Any] | None = None,
        original: nn.Module | None = None,
        channel: Channel | None = None,
        notes: list[str] | None = None,
        attachments: list[Any] | None = None,
        renamed: dict[str, str] | None = None,
        *,
        observe: Callable[[Progress], None] | None = None,
        cancelled: Event | None = None,
        **settings: Any,
    ) -> None:
        self.task, self.spec, self.original = task, replace(spec or RunSpec(), **settings), original
        self.objects = {} if objects is None else objects
        self.channel = LocalChannel() if channel is None else channel
        if cancelled is not None:
            self.channel = LocalChannel(self.channel.progress, cancelled)
        if observe is not None:
            self.channel = RelayChannel(self.channel, observe)
        self.notes = [] if notes is None else notes
        self.attachments = [] if attachments is None else attachments
        self.renamed = {} if renamed is None else renamed

    @property
    def seed(self) -> int:
        """The seed of this run; torch, numpy and random are seeded with it before `apply`."""
        return self.spec.seed

    @property
    def device(self) -> str:
        """Where training happens, such as "cpu" or "cuda"."""
        return self.spec.device

    @property
    def backend(self) -> str:
        """The name of the backend that the session measures on."""
        return self.spec.backend

    @property
    def scratch(self) -> str:
        """The name of a folder for temporary files that lives as long as the session; `kdkit.guards.scratch.make_scratch` makes it."""
        return self.spec.scratch

    @property
    def stage(self) -> str:
        """The stage's title, such as "prune channels"."""
        return self.spec.stage

    # objects

    def named(self, name: str, kind: str = "object") -> Any:
        """The session's object of that name.

        Raises:
            KdError: the session has no such object; the message shows how to add it.
        """
        if self.objects.get(name) is None:
            known = ", ".join(sorted(key for key, value in self.objects.items() if value is not None)) or "none"
            raise KdError(
                f"{self.stage or 'this'} needs {kind} {name!r}, and the session has no such object", f"%kd set --{name} {{your_{name}}}", f"named objects: {known}"
            )
        return self.objects[name]

    def data(self, name: str = "train") -> Data:
        """A data set by name: "train", "eval", or the value of an option that names data."""
        return self.named(name, "data")

    @property
    def example(self) -> Batch:
        """One batch of inputs.

        Raises:
            KdError: the session has no data.
        """
        data = first_data(self.objects, EXAMPLE)
        if data is None:
            raise KdError(f"{self.stage or 'this'} needs one batch of inputs, and the session has none", "%kd set --eval {loader}, or --example {batch}")
        return data.example()

    @property
    def has_calibration(self) -> bool:
        """Whether a stage whose calibration data is optional has some: calibration or training data, and no evaluation data."""
        return first_source(self.objects, OPTIONAL_CALIBRATION) is not None

    def calibration(self, batches: int | None = None) -> Iterator[Batch]:
        """Batches to observe the model on, in a fixed order: calibration data, else training data, else evaluation data.

        Args:
            batches: stop after this many; default: one pass over the data.

        Raises:
            KdError: the session has no data.
            Cancelled: the user cancelled.
        """
        data = first_data(self.objects, CALIBRATION)
        if data is None:
            raise KdError(f"{self.stage or 'this'} needs calibration data, and the session has none", "%kd set --calibration {batches}; labels are not needed")
        for index, batch in enumerate(data.batches()):
            if batches is not None and index >= batches:
                return
            self.check_cancelled()
            yield batch

    @contextlib.contextmanager
    def teacher(self, name: str = "teacher") -> Iterator[nn.Module]:
        """A teacher by name, in eval mode and without gradients; its modes and flags are restored afterwards.

        "original" is the session's first model; so is "teacher" in a session without a teacher.
        """
        from kdkit.models import frozen

        model = self.objects.get(name)
        if model is None and name in ("teacher", "original"):
            model = self.original
        if model is None:
            model = self.named(name, "teacher")
        with frozen(model):
            yield model

    # results

    def note(self, text: str) -> None:
        """Add a line to the report, such as which layers were skipped and why."""
        self.notes.append(text)

    def attach(self, attachment: Any) -> None:
        """Attach a table or chart to the new version, displayed below its report. Attachments are not saved.

        Args:
            attachment: has a short, stable `__repr__` and a `_repr_html_`; it must not keep references to models or data.
        """
        self.attachments.append(attachment)

    def note_rename(self, old: str, new: str) -> None:
        """Record that a layer has a new name, so that kdkit recognizes its weights and keeps them in memory only once.

        >>> from kdkit.tasks import Classification
        >>> context = Context(Classification())
        >>> context.note_rename("conv1", "conv1.0")
        >>> context.renamed
        {'conv1': 'conv1.0'}
        """
        self.renamed[old] = new

    def outcome(self, model: nn.Module) -> Outcome:
        """The result of this run as a value: the model with what was noted, attached and renamed so far."""
        return Outcome(model, tuple(self.notes), tuple(self.attachments), dict(self.renamed))

    # progress and cancellation

    def progress(self, done: float, total: float, text: str = "", **figures: float) -> None:
        """Report progress. A cancelled stage stops here.

        Raises:
            Cancelled: the user cancelled.
        """
        self.check_cancelled()
        self.channel.progress(Progress(self.stage, done, total, text, figures))

    def check_cancelled(self) -> None:
        """Stop if the user cancelled.

        Raises:
            Cancelled: the user cancelled.
        """
        if self.channel.cancelled():
            raise Cancelled(f"{self.stage or 'the stage'} was cancelled", "the session is as it was before")

    # another process

    def detached(self, names: Iterable[str]) -> Context:
        """A copy for another process: the named objects and one example batch as values, a silent channel, and no notes.

        Args:
            names: the objects to keep; names that the session does not have are left out.

        >>> from kdkit.tasks import Classification
        >>> context = Context(Classification(), objects={"scale": 2.0, "shift": 1.0})
        >>> context.detached(["scale"]).objects
        {'scale': 2.0}
        """
        from kdkit.data import BatchList

        objects = {name: self.objects[name] for name in names if self.objects.get(name) is not None}
        if (data := first_data(self.objects, EXAMPLE)) is not None:
            objects["example"] = BatchList([data.example()], data.reason)
        return replace(self, objects=objects, channel=SilentChannel(), notes=[], attachments=[], renamed={})

    # old names, for this release

    def fit(self, model: nn.Module, stages: list[Any]) -> nn.Module:
        """The old name of `kdkit.training.fit(model, stages, context)`."""
        warn_renamed("Context.fit", "kdkit.training.fit(model, stages, context)")
        first, *others = stages
        return first.fit_with(others, model, self)

    def exhibit(self, thing: Any) -> None:
        """The old name of `attach`."""
        warn_renamed("Context.exhibit", "Context.attach")
        self.attach(thing)

    @property
    def observe(self) -> Callable[[Progress], None]:
        """The old name of `channel.progress`; assigning replaces the progress callback."""
        warn_renamed("Context.observe", "Context.channel")
        return self.channel.progress

    @observe.setter
    def observe(self, observe: Callable[[Progress], None]) -> None:
        warn_renamed("Context.observe", "Context.channel")
        self.channel = RelayChannel(self.channel, observe)

    @property
    def cancelled(self) -> Any:
        """The event of earlier releases: `is_set()`, and `set()` in this process."""
        warn_renamed("Context.cancelled", "check_cancelled() or channel.cancelled()")
        return SimpleNamespace(is_set=self.channel.cancelled, set=getattr(self.channel, "cancel", None))

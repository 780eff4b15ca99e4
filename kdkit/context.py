"""The context: everything a stage may ask of the kit while it works."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, Any

from kdkit.errors import Cancelled, KdError

if TYPE_CHECKING:
    from torch import nn

    from kdkit.contract import TrainStage
    from kdkit.data import Batch, Data
    from kdkit.tasks import Task


@dataclass
class Context:
    """What a stage is handed beside its private copy of the model.

    Attributes:
        task: how outputs and a batch become loss and metrics.
        seed: of this run; torch, numpy and random are seeded with it before `apply`.
        device: where training happens, such as "cpu" or "cuda".
        backend: name of the backend the session measures on.
        objects: the session's named objects: data sets, teachers, tokenizers, functions.
        original: the model the session began with, in eval mode; never to be changed.
        observe: called with each progress message.
        cancelled: set when the user asked to stop.
        notes: what the stage had to say, shown with its report.
        exhibits: what it had to show, see `exhibit`.
        scratch: a folder of the session's own for checkpoints.
        trackers: loggers that hear of what happens.
    """

    task: Task
    seed: int = 0
    device: str = "cpu"
    backend: str = "cpu"
    objects: Mapping[str, Any] = field(default_factory=dict)
    original: nn.Module | None = None
    observe: Callable[[Progress], None] = lambda progress: None
    cancelled: Event = field(default_factory=Event)
    notes: list[str] = field(default_factory=list)
    exhibits: list[Any] = field(default_factory=list)
    scratch: str = ""
    stage: str = ""
    trackers: tuple[Any, ...] = ()

    def named(self, name: str, kind: str = "object") -> Any:
        """The session's object of that name.

        Raises:
            KdError: there is none; the message says how to give it.
        """
        if self.objects.get(name) is None:
            known = ", ".join(sorted(key for key, value in self.objects.items() if value is not None)) or "none"
            raise KdError(
                f"{self.stage or 'this'} needs {kind} {name!r}, and the session has no such object", f"%kd set --{name} {{your_{name}}}", f"named objects: {known}"
            )
        return self.objects[name]

    def data(self, name: str = "train") -> Data:
        """A data set by name: "train", "eval", or one that an option named."""
        return self.named(name, "data")

    @property
    def example(self) -> Batch:
        """One batch of inputs.

        Raises:
            KdError: the session has no data at all.
        """
        for name in ("example", "eval", "train", "calibration"):
            if self.objects.get(name) is not None:
                return self.objects[name].example()
        raise KdError(f"{self.stage or 'this'} needs one batch of inputs, and the session has none", "%kd set --eval {loader}, or --example {batch}")

    def calibration(self, batches: int | None = None) -> Iterator[Batch]:
        """Batches to observe the model on, in a fixed order: the calibration data, else training, else evaluation data."""
        for name in ("calibration", "train", "eval"):
            if self.objects.get(name) is not None:
                for index, batch in enumerate(self.objects[name].batches()):
                    if batches is not None and index >= batches:
                        return
                    self.check_cancelled()
                    yield batch
                return
        raise KdError(f"{self.stage or 'this'} needs calibration data, and the session has none", "%kd set --calibration {batches}; labels are not needed")

    @contextlib.contextmanager
    def teacher(self, name: str = "teacher") -> Iterator[nn.Module]:
        """A teacher by name, in eval mode and without gradients; its modes and flags are put back afterwards.

        With "original", and with "teacher" where the session was given none, it is the model the session began with.
        """
        from kdkit.models import frozen

        model = self.objects.get(name)
        if model is None and name in ("teacher", "original"):
            model = self.original
        if model is None:
            model = self.named(name, "teacher")
        with frozen(model):
            yield model

    def fit(self, model: nn.Module, stages: list[TrainStage]) -> nn.Module:
        """Train `model` for the parts of `stages`, in one loop."""
        from kdkit.training import fit

        return fit(model, stages, self)

    def note(self, text: str) -> None:
        """Say something that belongs in the report, such as which layers were skipped and why."""
        self.notes.append(text)

    def exhibit(self, thing: Any) -> None:
        """Show something with the version, below its report, such as a table or a picture; it is not saved with it.

        Args:
            thing: has a short stable text repr and `_repr_html_`; it must not hold on to models or data.
        """
        self.exhibits.append(thing)

    def progress(self, done: float, total: float, text: str = "", **figures: float) -> None:
        """Tell how far the work is; also the place where a cancelled stage stops.

        Raises:
            Cancelled: the user asked to stop.
        """
        self.check_cancelled()
        self.observe(Progress(self.stage, done, total, text, figures))

    def check_cancelled(self) -> None:
        """Stop here if the user asked to.

        Raises:
            Cancelled: so it is.
        """
        if self.cancelled.is_set():
            raise Cancelled(f"{self.stage or 'the stage'} was cancelled", "the session is as it was before")


@dataclass(frozen=True)
class Progress:
    """How far a stage is: `done` of `total`, what it is doing, and figures such as the loss.

    Attributes:
        part: which of the pipeline's stages it is, from 1, of `parts`.
    """

    stage: str
    done: float
    total: float
    text: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    part: int = 1
    parts: int = 1

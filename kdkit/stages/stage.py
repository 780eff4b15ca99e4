"""The stage contract: a technique is one frozen pydantic class.

Its fields are its parameters, its class attributes its declared facts, its `apply` the work. The fields alone feed the
magic's parser, `help`, completion, the wizard's form, the recipe and the search space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from kdkit.errors import KdError
from kdkit.parameters.command_line import write_options
from kdkit.parameters.settings import Settings
from kdkit.stages.data_sources import DATA

if TYPE_CHECKING:
    from torch import nn

    from kdkit.models.stored_form import Storage
    from kdkit.stages.context import Context


API = 1
"""The number of this contract; a stage declares the version it was written for; default: the current one."""

OLDEST_API = 1
"""The oldest supported contract. New facts, needs and hook arguments are additions; a removal raises `API`."""

FAMILIES = ("distill", "prune", "decompose", "peft", "tune", "quantize", "encode", "convert")
"""The families of kdkit, in their usual order in a pipeline; a plugin may add its own."""


@dataclass(frozen=True)
class Needs:
    """What a stage needs besides the model.

    Attributes:
        example: one batch of inputs (any data of the session gives it).
        calibration: unlabelled batches to stream once.
        train: batches to train on.
        labels: the training batches carry labels.
        teacher: a teacher model.
        tokenizer: a tokenizer.
        text: the training batches carry their text in `Batch.fields`, such as "prompt" and "completion".
        packages: importable packages, by import name.

    >>> Needs(train=True, packages=("peft",))
    Needs(train=True, packages=('peft',))
    """

    example: bool = False
    calibration: bool = False
    train: bool = False
    labels: bool = False
    teacher: bool = False
    tokenizer: bool = False
    text: bool = False
    packages: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The needs that are set, by name, packages last."""
        return [item.name for item in fields(self) if item.name != "packages" and getattr(self, item.name)] + list(self.packages)

    def __or__(self, other: Needs) -> Needs:
        joined = {item.name: getattr(self, item.name) or getattr(other, item.name) for item in fields(self)}
        return Needs(**joined | {"packages": tuple(dict.fromkeys(self.packages + other.packages))})

    def __repr__(self) -> str:
        return f"Needs({', '.join(f'{item.name}={getattr(self, item.name)!r}' for item in fields(self) if getattr(self, item.name))})"


class Stage(Settings):
    """One technique with its parameters: an immutable step of a pipeline.

    A subclass sets `id` ("family.technique"), declares its parameters with `param`, and writes `apply`. See
    `kdkit.plugins.hookspecs.kdkit_stages` for how it is published.

    >>> from typing import ClassVar
    >>> from kdkit import param
    >>> class Halve(Stage):
    ...     '''Multiply every weight by a factor.'''
    ...     id: ClassVar = "tune.halve"
    ...     factor: float = param(0.5, "what every weight is multiplied by", gt=0)
    ...     def apply(self, model, context):
    ...         for weight in model.parameters():
    ...             weight.data.mul_(self.factor)
    >>> Halve(factor=0.25).line()
    'tune halve --factor 0.25'
    """

    id: ClassVar[str] = ""
    api: ClassVar[int] = API
    version: ClassVar[int] = 1
    needs: ClassVar[Needs] = Needs()
    requires: ClassVar[Iterable[str]] = frozenset()
    forbids: ClassVar[Iterable[str]] = frozenset()
    adds: ClassVar[Iterable[str]] = frozenset()
    removes: ClassVar[Iterable[str]] = frozenset()
    bridge: ClassVar[bool] = False
    """Whether the kit may insert the stage, with its defaults, where a later stage needs the traits it adds or removes."""
    may_change_nothing: ClassVar[bool] = False
    """Whether an unchanged model is a valid result; otherwise it is an error."""
    freezes: ClassVar[bool] = False
    """Whether it may freeze parameters (`requires_grad`) that were not frozen; the trait `adapters_attached` declares it too."""
    keeps_output: ClassVar[bool] = True
    """Whether the outputs keep their structure and shapes; the kit checks it on the example batch."""
    keeps_values: ClassVar[bool] = False
    """Whether the outputs keep their values up to the rounding of the dtype; the kit compares them on a batch and refuses another result."""
    known_as: ClassVar[tuple[str, ...]] = ()
    """Other names of the technique: those of papers, such as "RKD", and former ones. `list`, `help` and lines know them. Not inherited."""
    sample_options: ClassVar[str] = ""
    """Options that the example line of `help` shows after the first one, such as those that a realistic run needs."""
    tried_as: ClassVar[str] = ""
    """The options with which `kdkit.testing` runs the stage, if its zoo has no model for the defaults."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Change `model`, a private copy, and return it, or return another model; None means the copy."""
        if self.storage() is not None:
            return model
        raise KdError(f"{type(self).__name__} has no apply", "write apply(self, model, context) that changes or returns the model")

    def storage(self) -> Storage | None:
        """How the new version is stored: the codec that encodes its weights when it is saved. None: as plain tensors.

        A stage that has a storage needs no `apply`, and need not change the model. A later stage that changes the weights drops the storage.
        """
        return None

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Problems that are known before any work, one line each; cheap, and without data."""
        return ()

    @classmethod
    def other_names(cls) -> tuple[str, ...]:
        """What this class itself declares as `known_as`: a technique derived from another one has names of its own."""
        return tuple(vars(cls).get("known_as", ()))

    @classmethod
    def hints_on(cls, unknown: str) -> Sequence[str]:
        """Data, a teacher and a tokenizer belong to the session, of which every stage takes them."""
        if unknown in (*DATA, "teacher", "tokenizer"):
            named = f"--data NAME trains on other data of the session: %kd set --NAME {{{unknown}}}" if unknown == "train" and "data" in cls.model_fields else ""
            return [f"{unknown} belongs to the session, not to a stage: %kd set --{unknown} {{{unknown}}}", *([named] if named else [])]
        return super().hints_on(unknown)

    @classmethod
    def _renamed_methods(cls) -> dict[str, str]:
        return super()._renamed_methods() | {"needed": "required_inputs", "references": "named_objects"}

    def required_inputs(self) -> Needs:
        """The needs with these parameters; default: `needs`. Override it if they depend on parameters."""
        return self.needs

    def optional_inputs(self) -> Needs:
        """What the stage uses where the session has it, and works without; default: nothing.

        A stage with optional calibration data asks `context.has_calibration` before it calls `context.calibration()`.
        """
        return Needs()

    def named_objects(self) -> Iterator[tuple[str, str, str]]:
        """(parameter, kind, name) for each object of the session that the stage names; a subclass may omit objects that it creates itself."""
        for name, info in type(self).model_fields.items():
            kind = (info.json_schema_extra or {}).get("names", "")  # type: ignore[union-attr]
            value = getattr(self, name)
            if kind and kind not in ("layers", "path") and value:
                yield from ((name, str(kind), each) for each in (value if isinstance(value, tuple | dict) else (value,)))

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """Predict the model after the stage, without training or data; default: apply the stage to a temporary copy."""
        changed = self.apply(model, context)
        return Forecast(model if changed is None else changed)

    def reference_model(self, model: nn.Module, context: Context) -> tuple[str, nn.Module] | None:
        """Name and model of what the stage aims at in quality, such as a teacher; a comparison shows its figure. None if there is none.

        Args:
            model: that the stage would be applied to.
            context: of the run.
        """
        return None

    @property
    def family(self) -> str:
        """The family, such as "prune"."""
        return self.id.partition(".")[0]

    @property
    def technique(self) -> str:
        """The technique within its family, such as "channels"."""
        return self.id.partition(".")[2]

    @property
    def title(self) -> str:
        """How messages name it: "prune channels"."""
        return self.id.replace(".", " ", 1)

    def line(self) -> str:
        """The stage as one line of a `%%kd` cell."""
        return " ".join([self.family, self.technique, *write_options(self)])

    def __str__(self) -> str:
        return self.line()


@dataclass(frozen=True)
class Forecast:
    """The predicted result of a stage.

    Attributes:
        model: the model's structure afterwards (weights may be anything).
        size_bytes: bytes on disk, where the structure alone does not tell.
        macs_ratio: MACs afterwards over MACs of `model`, where the structure alone does not tell.
    """

    model: nn.Module
    size_bytes: int | None = None
    macs_ratio: float | None = None

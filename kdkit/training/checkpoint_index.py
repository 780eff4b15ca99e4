"""The index of a checkpoint: what its file `training.json` holds, each field validated when it is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from kdkit.parameters.schema import Record

SCHEMA = 1
"""The version of the format."""

LARGEST_BYTES = 2**28
"""Of an index; one with a million steps in its curve has 0.1 GB."""

FileName = Annotated[str, StringConstraints(pattern=r"^epoch-\d{1,9}\.safetensors$")]
"""A file of tensors; nothing else is ever read, replaced or deleted beside the index."""

_Count = Annotated[int, Field(ge=0, lt=2**62)]
_Figures = dict[str, float]


class BestEpoch(Record):
    """What early stopping knows: the best figure so far, its epoch, and how many epochs passed without a better one."""

    figure: float | None
    epoch: _Count
    waited: _Count
    stopped: bool


class Facts(Record):
    """All of a training's state that is no tensor."""

    epoch: _Count
    step: _Count
    curve: list[tuple[_Count, _Figures]]
    validation: list[tuple[_Count, _Figures]] = []
    optimizer: dict[str, bool | int | float | None]
    scaler: dict[str, int | float] | None
    weights: dict[str, list[tuple[float | None, str]]] = {}
    judge: BestEpoch | None


class Index(Record):
    """What a checkpoint states about itself.

    Attributes:
        identity: of the training.
        epoch: the last one that was written.
        tensors: the file of its tensors; None before the first is complete.
        files: all files of tensors that may exist, those that are being written or deleted among them.
        sha256: of the file of tensors; None in a checkpoint of kdkit 0.1.
    """

    kdkit_training: int = SCHEMA
    identity: dict[str, Any]
    epoch: _Count = 0
    tensors: FileName | None = None
    files: tuple[FileName, ...] = ()
    sha256: str | None = None
    facts: Facts | None = None

    @property
    def names(self) -> set[str]:
        """The files of tensors that are the checkpoint's own."""
        return {*self.files, *([self.tensors] if self.tensors else [])}

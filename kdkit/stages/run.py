"""The run of a stage as values: what goes in, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RunSpec:
    """The settings of one run, as plain data.

    Attributes:
        stage: the stage's title, such as "prune channels", for messages.
        seed: torch, numpy and random are seeded with it before `apply`.
        device: where training happens, such as "cpu" or "cuda".
        backend: name of the backend that the session measures on.
        scratch: the name of a folder for checkpoints that lives as long as the session; made when it is first written to.
    """

    stage: str = ""
    seed: int = 0
    device: str = "cpu"
    backend: str = "cpu"
    scratch: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of one run.

    Attributes:
        model: the new model.
        notes: lines for the report.
        attachments: tables and charts, displayed below the report.
        renamed: old name -> new name of each layer that the stage renamed.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()
    attachments: tuple[Any, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

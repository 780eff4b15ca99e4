"""Stages: the contract of a technique, and what a stage is given and gives back."""

from typing import Any

from kdkit.lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "stage": ["Forecast", "Needs", "Stage"],
        "context": ["Context"],
        "channel": ["Channel", "LocalChannel", "Progress", "RelayChannel"],
        "run": ["Outcome", "RunSpec"],
        "remote": ["object_names", "pack", "run_packed", "run_stage", "unpack"],
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)

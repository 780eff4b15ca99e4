"""Objects: what a session holds under names, so that stages can name it: data sets, teachers, tokenizers, functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from kdkit.contract import Stage, TrainStage
from kdkit.data import Batch, adopt_data
from kdkit.errors import KdError, did_you_mean
from kdkit.models import adopt_teacher
from kdkit.pipeline import missing_packages, references

DATA = ("train", "eval", "calibration", "validation", "example")
"""Names under which stages and measures look for data."""


class Objects(Mapping[str, Any]):
    """Named objects; "@label" is a version's model and "original" the first one.

    Args:
        named: the objects.
        model_of: gives the model for "@label" and "original".
        batch_size: for data that comes as one array.
    """

    def __init__(self, named: Mapping[str, Any], model_of: Callable[[str], nn.Module], batch_size: int):
        self._named, self._model_of, self._batch_size = dict(named), model_of, batch_size

    def __getitem__(self, name: str) -> Any:
        return self._model_of(name) if name.startswith("@") or name == "original" else self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def having(self, named: Mapping[str, Any], batch_size: int) -> Objects:
        """These and more; data and teachers are adopted, None takes one out.

        Raises:
            KdError: data or a teacher that can't be adopted; the message names the option.
        """
        adopted = {name: self._adopted(name, value, batch_size) for name, value in named.items()}
        return Objects({name: value for name, value in (self._named | adopted).items() if value is not None}, self._model_of, batch_size)

    def _adopted(self, name: str, value: Any, batch_size: int) -> Any:
        if value is None or name not in (*DATA, "teacher"):
            return value
        try:
            return adopt_teacher(value) if name == "teacher" else adopt_data(value, batch_size=batch_size)
        except KdError as error:
            raise KdError(f"--{name}: {error.message}", *error.hints) from error

    def example(self) -> Batch | None:
        """One batch of inputs, from whichever data there is."""
        return next((self[name].example() for name in ("example", "eval", "train", "calibration") if name in self), None)

    def check(self, stage: Stage, task: Any) -> None:
        """Hold what a stage needs and names against what there is.

        Raises:
            KdError: something is missing; the message says what to pass.
        """
        needs, title = stage.needed(), stage.title
        absent = missing_packages(needs)
        if absent:
            raise KdError(f"{title} needs {', '.join(absent)}, which is not installed", f"pip install {' '.join(name.replace('_', '-') for name in absent)}")
        idle = isinstance(stage, TrainStage) and not needs.train
        for flag, kind, name in references(stage):
            if idle and flag in ("--data", "--validation"):
                continue
            self._check_reference(title, flag, kind, name)
        if (needs.example or needs.calibration) and self.example() is None:
            what = "calibration data" if needs.calibration else "one batch of inputs"
            raise KdError(f"{title} needs {what}, and the session has no data", "%kd set --calibration {batches}; labels are not needed")
        if needs.tokenizer and "tokenizer" not in self:
            raise KdError(f"{title} needs a tokenizer", "%kd set --tokenizer {tokenizer}")
        if needs.labels:
            self._check_labels(title, getattr(stage, "data", "train"), task, _without_labels(stage))

    def _check_reference(self, title: str, flag: str, kind: str, name: str) -> None:
        if kind == "model" and (name.startswith("@") or name in ("teacher", "original")):
            self.get(name)
            return
        if name not in self:
            noun = {"data": "data", "model": "a model", "function": "a function"}.get(kind, "an object")
            way = f"%kd set --{name.replace('_', '-')} {{{name}}}" if name.isidentifier() else f"{flag} {{your_{kind}}} hands it over"
            raise KdError(f"{title} {flag} {name} needs {noun}, and the session has none of that name", self._meant(kind, name), way)
        if kind == "data":
            try:
                self._named[name] = adopt_data(self[name], batch_size=self._batch_size)
            except KdError as error:
                raise KdError(f"{title} {flag} {name}: {error.message}", *error.hints) from error

    def _meant(self, kind: str, name: str) -> str:
        """What a name that the session has not may stand for."""
        with contextlib.suppress(KdError):
            if kind == "model" and self._model_of(f"@{name}") is not None:
                return f"the version of that name is @{name}"
        return did_you_mean(name, self)

    def _check_labels(self, title: str, name: str, task: Any, way: str) -> None:
        if name not in self:
            raise KdError(f"{title} needs labelled data to train on, and the session has none", "%kd set --train {loader}")
        if not self[name].labelled and getattr(task, "needs_labels", True):
            raise KdError(f"{title} needs labels, and {name} has none", "pass pairs of inputs and labels", way or "or use a technique that learns from a teacher alone")


def _without_labels(stage: Stage) -> str:
    """The option with which a stage does without labels; empty where it has none."""
    can = getattr(stage, "labels", None) is True and not stage.model_copy(update={"labels": False}).needed().labels
    return "or learn from the teacher alone: --no-labels" if can else ""

"""Objects: what stages can refer to by name: data sets, teachers, tokenizers, functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from kdkit.data import Batch, Data
from kdkit.errors import KdError, did_you_mean
from kdkit.pipelines.needs import missing_packages, named_objects
from kdkit.session.adoption import adopt_data, adopt_teacher
from kdkit.session.settings import role
from kdkit.stages.data_sources import EXAMPLE, first_data
from kdkit.stages.stage import Stage
from kdkit.training.stage import TrainStage


class Objects(Mapping[str, Any]):
    """Named objects, with models of versions among them: "@label" is a version's model, "original" the model that the session began with.

    Args:
        named: the objects.
        model_of: returns the model for "@label" and "original".
        batch_size: for data given as one array.
    """

    def __init__(self, named: Mapping[str, Any], model_of: Callable[[str], nn.Module], batch_size: int):
        self._named, self._model_of, self._batch_size = dict(named), model_of, batch_size

    def __getitem__(self, name: str) -> Any:
        return self._model_of(name) if name.startswith("@") or name == "original" else self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def updated(self, named: Mapping[str, Any], batch_size: int) -> Objects:
        """Return a copy with objects added, converting data and teachers. A value of None removes the object.

        Raises:
            KdError: data or a teacher can't be converted; the message names the option.
        """
        tokenizer = named.get("tokenizer", self._named.get("tokenizer"))
        adopted = {name: self._adopted(name, value, batch_size, tokenizer) for name, value in named.items()}
        return Objects({name: value for name, value in (self._named | adopted).items() if value is not None}, self._model_of, batch_size)

    def adopt(self, data: Any, batch_size: int) -> Data:
        """Convert data in any form; text with the session's tokenizer."""
        return adopt_data(data, batch_size, self._named.get("tokenizer"), self._model_of("original"))

    def _adopted(self, name: str, value: Any, batch_size: int, tokenizer: Any) -> Any:
        if value is None or role(name) not in ("data", "model"):
            return value
        try:
            return adopt_teacher(value) if role(name) == "model" else adopt_data(value, batch_size, tokenizer, self._model_of("original"))
        except KdError as error:
            raise KdError(f"--{name}: {error.message}", *error.hints) from error

    def example(self) -> Batch | None:
        """One batch of inputs; None while there is no data."""
        data = first_data(self, EXAMPLE)
        return None if data is None else data.example()

    def check(self, stage: Stage, task: Any) -> None:
        """Check that everything a stage needs or names is available.

        Raises:
            KdError: something is missing; the message says how to pass it.
        """
        needs, title = stage.required_inputs(), stage.title
        absent = missing_packages(needs)
        if absent:
            raise KdError(f"{title} needs {', '.join(absent)}, which is not installed", f"pip install {' '.join(name.replace('_', '-') for name in absent)}")
        idle = isinstance(stage, TrainStage) and not needs.train
        for flag, kind, name in named_objects(stage):
            if idle and flag in ("--data", "--validation"):
                continue
            self._check_reference(title, flag, kind, name)
        if (needs.example or needs.calibration) and self.example() is None:
            what = "calibration data" if needs.calibration else "one batch of inputs"
            raise KdError(f"{title} needs {what}, and the session has no data", "%kd set --calibration {batches}; labels are not needed")
        if needs.tokenizer and "tokenizer" not in self:
            raise KdError(f"{title} needs a tokenizer", "%kd set --tokenizer {tokenizer}")
        if needs.text:
            self._check_text(title, getattr(stage, "data", "train"))
        if needs.labels:
            self._check_labels(title, getattr(stage, "data", "train"), task, _without_labels(stage))

    def _check_reference(self, title: str, flag: str, kind: str, name: str) -> None:
        if kind == "model" and (name.startswith("@") or name in ("teacher", "original")):
            self.get(name)
            return
        if name not in self:
            noun = {"data": "data", "model": "a model", "function": "a function"}.get(kind, "an object")
            way = f"%kd set --{name.replace('_', '-')} {{{name}}}" if name.isidentifier() else f"{flag} {{your_{kind}}} passes an object of the notebook"
            raise KdError(f"{title} {flag} {name} needs {noun}, and the session has none of that name", self._meant(kind, name), way)
        if kind == "data":
            try:
                self._named[name] = self.adopt(self[name], self._batch_size)
            except KdError as error:
                raise KdError(f"{title} {flag} {name}: {error.message}", *error.hints) from error

    def _meant(self, kind: str, name: str) -> str:
        """A hint on what a name that is not there was meant to be."""
        with contextlib.suppress(KdError):
            if kind == "model" and self._model_of(f"@{name}") is not None:
                return f"the version of that name is @{name}"
        return did_you_mean(name, self)

    def _check_text(self, title: str, name: str) -> None:
        if name not in self or not self[name].example().fields:
            raise KdError(
                f"{title} needs text, and {f'{name} holds numbers only' if name in self else 'the session has no data ' + name}",
                "%kd set --tokenizer {tokenizer} --train {texts}; texts are strings, or {'prompt': ..., 'completion': ...}",
            )

    def _check_labels(self, title: str, name: str, task: Any, way: str) -> None:
        if name not in self:
            raise KdError(f"{title} needs labelled data to train on, and the session has none", "%kd set --train {loader}")
        if not self[name].labelled and getattr(task, "needs_labels", True):
            raise KdError(f"{title} needs labels, and {name} has none", "pass pairs of inputs and labels", way or "or use a technique that learns from a teacher alone")


def _without_labels(stage: Stage) -> str:
    """A hint to the option that makes a stage work without labels; empty if it has none."""
    can = getattr(stage, "labels", None) is True and not stage.model_copy(update={"labels": False}).required_inputs().labels
    return "or learn from the teacher alone: --no-labels" if can else ""

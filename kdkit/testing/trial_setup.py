"""Trial setup: a model of the zoo in a session with every object that a stage may need, and a guard that finds what changed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kdkit.data import Batch, Data
from kdkit.models.copies import private_copy
from kdkit.pipelines.needs import named_objects
from kdkit.pipelines.order import after, follows
from kdkit.pipelines.pipeline import Pipeline
from kdkit.plugins.manager import manager
from kdkit.session.objects import Objects
from kdkit.session.session import Session
from kdkit.stages.context import Context
from kdkit.stages.data_sources import DATA
from kdkit.stages.stage import Needs, Stage
from kdkit.testing import zoo
from kdkit.testing.fingerprint import Fingerprint, changes, digest, fingerprint, in_short
from kdkit.training.stage import TrainStage

SEED = 5


@dataclass(frozen=True)
class TrialSetup:
    """One model of the zoo, prepared for a stage.

    Attributes:
        name: the model's name in the zoo.
        session: holds the objects that a stage may name.
        model: the stage receives a copy of it; the zoo's model, or the result of the stages that must come first.
        traits: traits of `model`.
    """

    name: str
    session: Session
    model: nn.Module
    traits: frozenset[str]

    def context(self, stage: Stage, **changed: Any) -> Context:
        """The context of a run; `changed` are attributes that differ from the default."""
        usual = {"task": self.session.task, "seed": SEED, "objects": self.session.objects, "original": self.session.original}
        return Context(**{**usual, "scratch": str(self.session._scratch.path), "stage": stage.title, **changed})

    def objects(self, stage: Stage, without: str = "") -> Objects:
        """The objects of a session where the user gave only what the stage declares; `without` omits one need."""
        needs, held = stage.required_inputs(), self.session.objects
        idle = isinstance(stage, TrainStage) and not needs.train
        names = {name for _, _, name in named_objects(stage) if not (idle and name in DATA)}
        names |= {name for name in ("train", "teacher", "tokenizer") if getattr(needs, name)}
        names |= {"calibration"} if needs.calibration else set()
        names |= {"eval"} if needs.train else set()
        names |= {"example"} if needs.example and not names & set(DATA) else set()
        names -= set(DATA) if without in ("example", "calibration", "train") else {without}
        bare = {"train", "calibration", "example", getattr(stage, "data", "train")} if without == "labels" or not needs.labels else set()
        if without != "labels":
            bare -= {name for flag, _, name in named_objects(stage) if flag != "--data"}  # their options determine what those must hold
        given = {name: _unlabelled(held[name]) if name in bare and isinstance(held[name], Data) else held[name] for name in names if name in held}
        return Objects(given, self.session._model_named, zoo.ITEMS)


def _unlabelled(data: Data) -> Data:
    batches = [replace(batch, labels=None) for batch in data.batches()]
    return Data(lambda: batches, f"{data.reason}, without labels", data.items)


def set_up_trial(stage: Stage, name: str) -> TrialSetup:
    """Set up a trial of a stage, after the stages that it requires before it.

    Raises:
        KdError: the stage can't run after any stage that suits the zoo.
    """
    session = zoo_session(name)
    steps = Pipeline.of([*_lines_before(stage, session.head.traits), stage]).plan(session.head.traits)
    lines = tuple(step.stage.line() for step in steps[:-1])
    model, traits = _prepared(name, lines) if lines else (session.original, session.head.traits)
    session.objects.check(stage, session.task)
    return TrialSetup(name, session, private_copy(model), traits)


def zoo_session(name: str) -> Session:
    """A session on a model of the zoo, with every object that a stage may need."""
    train, other = zoo.data(name), zoo.data(name, seed=2)
    given: dict[str, Any] = {"train": train, "eval": other, "calibration": train, "validation": other, "example": train.example()}
    given |= {"labelled": train, "unlabelled": _unlabelled(other), "function": torch.nn.functional.mse_loss, "object": [0] * (train.items or 0), **zoo.teachers(name)}
    return Session(zoo.make(name), tokenizer=zoo.tokenizer(), measures=(), **given)


def _lines_before(stage: Stage, traits: frozenset[str]) -> tuple[str, ...]:
    """The line of a stage that adds the traits which a stage requires and the zoo's models lack; empty if none is required or known."""
    if follows(stage, traits):
        return ()
    for other in manager().stages().values():
        if set(stage.requires) - traits <= set(other.adds) and not any(field.is_required() for field in other.model_fields.values()):
            maker = other()
            if follows(maker, traits) and follows(stage, after(maker, traits)):
                return (maker.line(),)
    return ()


@functools.lru_cache(maxsize=32)
def _prepared(name: str, lines: tuple[str, ...]) -> tuple[nn.Module, frozenset[str]]:
    """A model of the zoo after some stages; the caller copies it."""
    session = zoo_session(name)
    for line in lines:
        session.run(line)
    return session.history.model_of(session.head), session.head.traits


class ModelGuard:
    """What is not a stage's to change: the model it was given, the session's other models and its data."""

    def __init__(self, setup: TrialSetup):
        objects = {f"the session's {name}": value for name, value in setup.session.objects.items()}
        models = {id(value): (name, value) for name, value in reversed(objects.items()) if isinstance(value, nn.Module)}
        models[id(setup.session.original)] = ("the session's original", setup.session.original)
        models[id(setup.model)] = ("the model it was given", setup.model)
        self.models: dict[str, nn.Module] = dict(models.values())
        self.data = {name: value for name, value in objects.items() if isinstance(value, Data)}
        self.before = self._now()

    def changes(self) -> Iterator[str]:
        """What has changed since the last look, a line each."""
        before, self.before = self.before, self._now()
        for name in before:
            if places := changes(before[name], self.before[name]):
                yield f"changed {name}: {in_short(places)}"

    def _now(self) -> dict[str, Fingerprint]:
        data = {name: _inputs(found.example()) for name, found in self.data.items()}
        return {name: fingerprint(model) for name, model in self.models.items()} | data

    def shared_with(self, model: nn.Module) -> Iterator[str]:
        """Weights that a model holds in common with another, a line each."""
        mine = {tensor.untyped_storage()._cdata: name for name, tensor in _stored(model)}
        for owner, other in self.models.items():
            if both := [mine[tensor.untyped_storage()._cdata] for _, tensor in _stored(other) if tensor.untyped_storage()._cdata in mine]:
                yield f"its result holds the very weights of {owner}: {in_short(both)}"


def _inputs(batch: Batch) -> Fingerprint:
    return {f"input {key}": digest(item) for key, item in (*enumerate(batch.args), *batch.kwargs.items())}


def _stored(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout is torch.strided and type(tensor.data) is torch.Tensor and tensor.numel():
            yield name, tensor


def each_need(needs: Needs) -> list[str]:
    """The needs that are set and can be taken away, packages apart; data for training gives an example too."""
    return [name for name in needs.names() if name not in needs.packages and not (name in ("example", "calibration") and needs.train)]

"""The two sides of a comparison: the pipeline of a version, and the control that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kdkit.errors import KdError, did_you_mean
from kdkit.parameters.command_line import read_options
from kdkit.parameters.settings import option
from kdkit.parameters.tokenizer import Reference, split
from kdkit.pipelines.pipeline import Pipeline
from kdkit.pipelines.text import read_stage
from kdkit.session.history import Version
from kdkit.session.session import Session
from kdkit.stages.stage import Stage
from kdkit.training.options import LoopOptions
from kdkit.training.stage import TrainStage
from kdkit.training.together import Together

SAME = "same"
"""The first word of a control that is the compared pipeline with other options: `same --alpha 0`."""

Resolve = Callable[[str, Any], Any]


def pipeline_since(session: Session, version: Version, start: Version) -> Pipeline:
    """The stages that made `version` from `start`, without the bridges that the kit inserted.

    Raises:
        KdError: the version was not made from `start`, or by no stage.
    """
    line = session.history.lineage(version)
    numbers = [each.number for each in line]
    if start.number not in numbers:
        raise KdError(f"{version.name} was not made from {start.name}", f"%kd code {version.name} shows how it was made; choose one of its ancestors with --on")
    stages = tuple(each.stage for each in line[numbers.index(start.number) + 1 :] if each.stage is not None and not each.inserted)
    if not stages:
        raise KdError(f"no stage made {version.name} since {start.name}", 'run the pipeline first, or write it: --stages "distill soft --epochs 3"')
    return Pipeline(stages, version.label, version.seed)


def parent_of(session: Session, version: Version) -> Version:
    """The version that a stage and its bridges started from.

    Raises:
        KdError: no stage made the version.
    """
    ancestors = session.history.lineage(version)[:-1]
    while ancestors and ancestors[-1].inserted:
        ancestors.pop()
    if not ancestors:
        raise KdError(f"no stage made {version.name}, so there is nothing to compare", 'run the pipeline first, or write it: --stages "distill soft --epochs 3"')
    return ancestors[-1]


def read_control(
    text: str,
    compared: Pipeline,
    read: Callable[[str], Stage] = lambda line: read_stage(split(line)),
    resolver: Callable[[type[Stage]], Resolve | None] = lambda stage: None,
) -> Pipeline:
    """The control that a text stands for: lines of stages, or `same` and the options that differ.

    Args:
        text: one stage a line.
        compared: the pipeline that `same` stands for.
        read: makes a stage of one line.
        resolver: gives what resolves the words of a stage's options; see `kdkit.parameters.command_line.read_options`.

    >>> print(read_control("same --ratio 0.25", Pipeline.from_lines("prune channels --ratio 0.5")))
    prune channels --ratio 0.25

    Raises:
        KdError: the text can't be read, or no stage has one of the options.
    """
    words = split(text) if text.split()[:1] == [SAME] else []
    if not words:
        return Pipeline.from_lines(text, read=read)
    return changed(compared, words[1:], resolver)


def changed(pipeline: Pipeline, words: Sequence[Any], resolver: Callable[[type[Stage]], Resolve | None] = lambda stage: None) -> Pipeline:
    """The pipeline with other options, in every stage that has them.

    Raises:
        KdError: no stage has one of the options.
    """
    options = list(_options(words))
    known = {flag for stage in _each(pipeline.stages) for flag in map(option, type(stage).model_fields)}
    for flag, _ in options:
        if not _field(flag, known):
            raise KdError(f"{SAME} {flag}: no stage of the compared pipeline has this option", did_you_mean(flag, known), f"it is: {pipeline.lines()}")

    def change(stage: Stage) -> Stage:
        flags = set(map(option, type(stage).model_fields))
        mine = [word for flag, chunk in options if _field(flag, flags) for word in chunk]
        values = read_options(type(stage), mine, stage.title, resolver(type(stage)))
        return stage.build(stage.title, {name: getattr(stage, name) for name in stage.model_fields_set} | values) if values else stage

    return _mapped(pipeline, change)


def _options(words: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """(option, its words) of the words of a line."""
    flag = ""
    chunk: list[Any] = []
    for word in words:
        named = word.flag if isinstance(word, Reference) else word.partition("=")[0] if word.startswith("--") else ""
        if named:
            if chunk:
                yield flag, chunk
            flag, chunk = named, []
        elif not flag:
            raise KdError(f"{SAME} {word}: options are expected, such as {SAME} --epochs 3")
        chunk.append(word)
    if not flag:
        raise KdError(f"{SAME} alone is no control: name the options that differ", f'such as "{SAME} --alpha 0"')
    yield flag, chunk


def _field(flag: str, known: set[str]) -> str:
    """The option among the known ones that a word sets or turns off; empty if none."""
    spelled = flag.replace("_", "-")
    return next((each for each in (spelled, "--" + spelled.removeprefix("--no-")) if each in known), "")


def with_loop_of(control: Pipeline, compared: Pipeline, session: Session) -> Pipeline:
    """The control trained with the loop options of the compared pipeline, except those that it sets itself.

    Where its data are others, it trains for as many optimizer steps instead of as many epochs.

    Raises:
        KdError: one of the two trains nothing.
    """
    loop = trainer(compared)
    if loop is None or trainer(control) is None:
        raise KdError(f"--same-loop: the {'compared pipeline' if loop is None else 'control'} trains nothing", "leave out --same-loop")

    def follow(stage: Stage) -> Stage:
        if not isinstance(stage, TrainStage):
            return stage
        own = stage.model_fields_set | {"checkpoint", "resume"}
        names = [name for name in LoopOptions.model_fields if name not in own and name in type(stage).model_fields]
        values = {name: getattr(loop, name) for name in names}
        if "data" in own and stage.data != loop.data and loop.steps is None and not own & {"steps", "epochs"}:
            values["steps"] = optimizer_steps(loop, session)
        return stage.model_copy(update=values)

    return _mapped(control, follow)


def trainer(pipeline: Pipeline) -> TrainStage | None:
    """The stage whose options the pipeline's last training loop follows."""
    for stage in reversed(pipeline.stages):
        first = stage.stages[0] if isinstance(stage, Together) else stage
        if isinstance(first, TrainStage):
            return first
    return None


def optimizer_steps(loop: TrainStage, session: Session) -> int:
    """How many optimizer steps a training takes.

    Raises:
        KdError: the session has no such data.
    """
    if session.objects.get(loop.data) is None:
        raise KdError(f"--same-loop: the session has no data {loop.data!r} to count the steps of {loop.title}", "give the control --steps or --epochs of its own")
    data = session.objects.adopt(session.objects[loop.data], session.settings["batch_size"])
    batches = data.length(loop.batch_size) or sum(1 for _ in data.batches(batch_size=loop.batch_size))
    return loop.steps or max(1, math.ceil(loop.epochs * math.ceil(batches / loop.accumulate) - 1e-9))


def _each(stages: Sequence[Stage]) -> Iterator[Stage]:
    for stage in stages:
        yield from stage.stages if isinstance(stage, Together) else (stage,)


def _mapped(pipeline: Pipeline, change: Callable[[Stage], Stage]) -> Pipeline:
    stages = [Together(stages=tuple(map(change, stage.stages))) if isinstance(stage, Together) else change(stage) for stage in pipeline.stages]
    return Pipeline(tuple(stages), pipeline.name, pipeline.seed)

"""Saving: how a version was made, as a recipe, as `%kd` cells, and as the facts that a saved folder holds."""

from __future__ import annotations

from typing import Any

from kdkit.data import Batch
from kdkit.errors import printable
from kdkit.models import derive_inputs
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.history import History, Version
from kdkit.session.loading import OUTPUTS
from kdkit.stages.stage import Stage
from kdkit.storage.output_record import record_outputs
from kdkit.training.together import Together


def recipe_of(history: History, version: Version, anywhere: bool = False) -> Pipeline:
    """The stages that made a version, those before it was saved included.

    Args:
        anywhere: as for `Pipeline.from_data`, for a version that was loaded.

    Raises:
        KdError: a stage of a version that was loaded is not installed here, or names a place outside of the working directory.
    """
    first, run = _origin(history, version)
    before = Pipeline.from_data(first.facts["recipe"], f"the recipe of {first.name}", anywhere).stages if "recipe" in first.facts else ()
    return Pipeline((*before, *run), version.label, version.seed)


def _origin(history: History, version: Version) -> tuple[Version, tuple[Stage, ...]]:
    """The version that a lineage begins with, and the stages that ran in this session since."""
    line = history.lineage(version)
    return line[0], tuple(each.stage for each in line if each.stage is not None and not each.inserted)


def code_of(history: History, version: Version) -> str:
    """The `%kd` cells that make a version again."""
    first, *later = [each for each in history.lineage(version) if not each.inserted]
    cells = [] if first.stage else [f"# {first.name}: {printable(first.origin)}"]
    previous = first
    for each in (each for each in later if each.stage is not None):
        cells.append(_cell(each, previous.name))
        previous = each
    return "\n".join(cells)


def group_cell(history: History, version: Version) -> str:
    """The stages of a version as one `%%kd` cell, if they contain a group and all ran with the same seed; else an empty string."""
    line = history.lineage(version)
    made = [each for each in line if each.stage is not None and not each.inserted]
    stages = [each.stage for each in made if each.stage]
    if len({each.seed for each in made}) != 1 or not any(isinstance(each, Together) for each in stages):
        return ""
    start = next(each for each in reversed(line[: line.index(made[0])]) if not each.inserted)
    header = " ".join(filter(None, ("%%kd", made[-1].label, f"--on {start.name} --seed {made[0].seed}")))
    return f"{header}\n{Pipeline(tuple(stages)).lines()}"


def _cell(version: Version, start: str) -> str:
    assert version.stage is not None  # only a version that a stage made has a cell
    line, options = version.stage.line(), f"--on {start} --seed {version.seed}"
    if isinstance(version.stage, Together):
        return f"%%kd {version.label or version.number} {options}\n{line}"
    return f"%kd {line} {options}" + (f" --as {version.label}" if version.label else "")


def facts_of(history: History, version: Version, task: str | None, example: Batch | None) -> dict[str, Any]:
    """What a saved folder states about a version, as plain data."""
    model = history.model_of(version)
    example = example or derive_inputs(model)
    outputs = None if example is None else record_outputs(model, example)
    return {
        "label": version.label,
        "recipe": recipe_data(history, version),
        "code": code_of(history, version),
        "report": version.report.as_data(),
        "traits": sorted(version.traits),
        "notes": list(version.notes),
        "task": task,
        "seed": version.seed,
        OUTPUTS: outputs,
    }


def recipe_data(history: History, version: Version) -> dict[str, Any]:
    """The recipe as plain data, which needs no plugin for the stages that ran before the version was loaded."""
    first, run = _origin(history, version)
    data, before = Pipeline(run, version.label, version.seed).data(), first.facts.get("recipe")
    if not isinstance(before, dict):
        return data
    return data | {"distributions": {**(before.get("distributions") or {}), **data["distributions"]}, "steps": [*(before.get("steps") or ()), *data["steps"]]}

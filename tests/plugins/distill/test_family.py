"""The family: what holds for every technique of distillation, whoever wrote it."""

from __future__ import annotations

import sys

import pytest

from kdkit.stages.validation import validate_stage
from kdkit_distill import kdkit_stages
from kdkit_distill.technique import DistillStage

STAGES = list(kdkit_stages())
every = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.id)


@every
def test_the_rule_of_every_stage_holds(stage: type[DistillStage]) -> None:
    assert list(validate_stage(stage)) == []


@every
def test_its_help_line_is_one_imperative_sentence(stage: type[DistillStage]) -> None:
    line, _, rest = (stage.__doc__ or "").partition("\n")
    assert line.endswith(".")
    assert len(line) <= 110
    assert line.split()[0] in ("Match", "Weight", "Predict", "Identify", "Learn", "Train", "Teach", "Unite")
    assert rest.startswith("\n")


@every
def test_its_module_names_a_paper_and_the_pitfalls(stage: type[DistillStage]) -> None:
    reported = sys.modules[stage.__module__].__doc__ or ""
    assert any(str(year) in reported for year in range(2006, 2027))
    assert "Pitfalls:" in reported


def test_techniques_are_sorted_by_room_soft_labels_first() -> None:
    rooms = [stage.__module__.split(".")[1] for stage in STAGES]
    assert list(dict.fromkeys(rooms)) == ["response", "feature", "relation", "transformer", "scheme"]
    assert rooms == sorted(rooms, key=["response", "feature", "relation", "transformer", "scheme"].index)
    assert STAGES[0].id == "distill.soft"


@every
def test_weights_and_temperatures_may_follow_a_schedule(stage: type[DistillStage]) -> None:
    fields = stage.model_fields.keys()
    assert {"weight_schedule", "weight_end", "weight_warmup"} <= fields
    if stage.id != "distill.contrast":  # its temperature is of similarities, and no softening
        assert "temperature" not in fields or {"temperature_schedule", "temperature_end"} <= fields

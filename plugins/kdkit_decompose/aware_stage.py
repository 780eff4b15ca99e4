"""Stages that weigh the errors of a replacement by what the layer receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kdkit import Context, Needs, param
from kdkit_decompose.forms import Form
from kdkit_decompose.layer_stage import LayerStage
from kdkit_decompose.moments import Observation, observe_layers


class AwareStage(LayerStage):
    """A stage that looks at calibration data where the session has it."""

    aware: bool = param(
        True, "keep what the layers give out on calibration data, not their weights, where the session has data: far better, above all without training", main=True
    )
    batches: int = param(16, "calibration batches to look at", ge=1)

    def optional_inputs(self) -> Needs:
        """Calibration data, with `aware`."""
        return Needs(calibration=self.aware)

    def observe(self, model: nn.Module, layers: Mapping[str, tuple[Any, Form]], context: Context, *, with_data: bool) -> dict[str, Observation]:
        """What calibration data show about the layers; empty without data. A note names the layers of which they show nothing."""
        if not (with_data and self.aware and context.has_calibration):
            return {}
        seen = observe_layers(model, layers, context.calibration(self.batches))
        for name, observation in seen.items():
            if observation.problem:
                context.note(f"{name}: {observation.problem}: its weight alone counts")
        return {name: observation for name, observation in seen.items() if not observation.problem}

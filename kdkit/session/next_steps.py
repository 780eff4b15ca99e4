"""Next steps: the techniques that fit a version, those first that are of most use for its model and its state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kdkit.pipelines.order import follows
from kdkit.plugins.manager import manager
from kdkit.session.cures import CURES
from kdkit.session.history import History, Version

FOR_CONVOLUTIONS = ("prune.channels", "quantize.static", "distill", "decompose", "quantize", "prune", "convert", "tune", "peft")
FOR_TRANSFORMERS = ("quantize.dynamic", "prune", "distill", "quantize", "peft", "decompose", "convert", "tune")
FOR_OTHERS = ("quantize.static", "quantize", "prune", "decompose", "distill", "convert", "tune", "peft")
"""Techniques and families, those first that usually give more for less quality on a net of that kind."""


def next_steps(history: History, version: Version) -> list[str]:
    """The ids of techniques that can run on a version, directly or after a bridge.

    First, if the version lost quality, what restores it; then what its line did not do yet, in the order that suits its kind of net.
    """
    offered = manager().stages()
    fitting = [id for id, stage in offered.items() if not stage.bridge and follows(stage, version.traits)]
    done = {each.stage.family for each in history.lineage(version) if each.stage is not None and not each.inserted}
    usual = _usual_order(version.model)
    wanted = [*(CURES if version.marks else ()), *usual]

    def rank(id: str) -> tuple[int, int]:
        family = id.partition(".")[0]
        place = min((number for number, name in enumerate(wanted) if name in (id, family)), default=len(wanted))
        return (place + len(wanted) * (family in done and id not in wanted[: len(wanted) - len(usual)]), fitting.index(id))

    return sorted(fitting, key=rank)


def _usual_order(model: nn.Module | None) -> Sequence[str]:
    modules = [] if model is None else list(model.modules())
    if any(isinstance(module, nn.MultiheadAttention) or hasattr(getattr(module, "config", None), "num_attention_heads") for module in modules):
        return FOR_TRANSFORMERS
    return FOR_CONVOLUTIONS if any(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in modules) else FOR_OTHERS

"""Cures: what usually restores the quality that a step lost."""

from __future__ import annotations

from kdkit.pipelines.order import follows
from kdkit.plugins.manager import manager

CURES = ("distill.soft", "tune.finetune")
"""Stages that train the whole model, the one that usually restores more first."""


def lines_to_restore(traits: frozenset[str]) -> list[str]:
    """Lines that usually restore the quality of a version with these traits, of the stages that are installed."""
    offered = manager().stages()
    return [f"%kd {id.replace('.', ' ')} --epochs 3" for id in CURES if id in offered and follows(offered[id], traits)]

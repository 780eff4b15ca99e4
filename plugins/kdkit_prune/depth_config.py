"""The depth of a pruned transformer, written into its `config` where that can state it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from kdkit import Batch
from kdkit_prune.transformer_sizes import rebuilds

DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
"""Names of a depth in configs; those of an encoder and a decoder follow from the row's name."""


def write_depth(model: nn.Module, removed: Sequence[str], batch: Batch) -> str:
    """State the depth after removing blocks in the model's `config`, if a model built from it with the same weights gives the same outputs.

    Args:
        removed: the former names of the blocks.

    Returns:
        What a user must know: that `from_pretrained` can, or can't, bring the pruned model back. Empty where there is no config.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict") or not hasattr(type(model), "from_pretrained"):
        return ""
    values: dict[str, Any] = {}
    for row in dict.fromkeys(name.rpartition(".")[0] for name in removed):
        gone = [int(key) for place, _, key in (name.rpartition(".") for name in removed) if place == row and key.isdigit()]
        left = len(model.get_submodule(row)._modules)
        values |= {name: left for name in _names(row) if getattr(config, name, None) == left + len(gone)}
        values |= {name: [kind for index, kind in enumerate(kinds) if index not in gone] for name, kinds in _lists(config, left + len(gone)).items()}
    if not values or not rebuilds(model, _updated(copy.deepcopy(config), values), batch):
        return "config.json can't state this depth, so from_pretrained would not fit; kdkit's own save and load do"
    _updated(config, values)
    return f"config: {', '.join(f'{name} {value}' for name, value in values.items() if isinstance(value, int))}"


def _updated(config: Any, values: dict[str, Any]) -> Any:
    for name, value in values.items():
        setattr(config, name, value)
    return config


def _names(row: str) -> tuple[str, ...]:
    side = "decoder" if "decoder" in row.split(".") else "encoder"
    return f"{side}_layers", f"num_{side}_layers", *DEPTHS


def _lists(config: Any, length: int) -> dict[str, list]:
    """Lists in a config with an entry for each layer, such as `layer_types`."""
    return {name: value for name, value in config.to_dict().items() if name.startswith("layer") and isinstance(value, list) and len(value) == length}

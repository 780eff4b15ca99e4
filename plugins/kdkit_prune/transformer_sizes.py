"""The sizes of a pruned transformer: written into the attributes of its modules, and into its `config` where that can state them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kdkit import Batch
from kdkit.guards import random_state_kept
from kdkit_prune.transformer_layouts import ATTENTION, FEEDFORWARD, HEAD_WIDTH, HEADS, Block, Heads, blocks, fused, heads_of, hidden_width, in_width, out_width
from kdkit_prune.trial_cut import observe

KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
INNER_WIDTH = ("all_head_size", "split_size", "inner_dim", "attn_dim")
HIDDEN_WIDTH = ("hidden_size", "embed_dim", "d_model", "dim", "n_embd")
CONFIG_FEEDFORWARD = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff")


def settle_attributes(model: nn.Module, attention: Sequence[Block], numbers: dict[str, Heads | None], hidden: int) -> None:
    """Set every bookkeeping attribute to the current sizes of the layers."""
    for block in attention:
        before, holder = numbers[block.name], block.holder(model)
        if before is None:
            continue
        queries = out_width(model, block.into[0]) // fused(block)
        keys = out_width(model, block.into[1]) if len(block.into) > 1 else queries
        _state(holder, HEADS, queries // before.width)
        _state(holder, KEY_HEADS, keys // before.width)
        _state(holder, ("num_key_value_groups",), queries // keys)
        _state(holder, INNER_WIDTH, queries)
    now = hidden_width(model, attention, blocks(model, FEEDFORWARD))
    if hidden and now != hidden:
        for module in model.modules():
            _state(module, [name for name in HIDDEN_WIDTH if getattr(module, name, None) == hidden], now)


def write_config(model: nn.Module, batch: Batch) -> str:
    """Write uniform widths back into the model's `config`, if a model built from it with the same weights gives the same outputs.

    Returns:
        What a user must know: that `from_pretrained` can, or can't, bring the pruned model back. Empty where there is no config.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict") or not hasattr(type(model), "from_pretrained"):
        return ""
    sizes = _uniform(model, config)
    stated = {name: value for name, value in sizes.items() if hasattr(config, name) and getattr(config, name) != value}
    looked_for = {name: value for name, value in sizes.items() if name in _looked_for(model, config)}
    for values in (stated, stated | looked_for):
        wanted = copy.deepcopy(config)
        for name, value in values.items():
            setattr(wanted, name, value)
        if values and rebuilds(model, wanted, batch):
            for name, value in values.items():
                setattr(config, name, value)
            return f"config: {', '.join(f'{name} {value}' for name, value in values.items())}"
    return "config.json can't state these widths, so from_pretrained would not fit; kdkit's own save and load do"


def _uniform(model: nn.Module, config: Any) -> dict[str, int]:
    """The sizes by their names in configs, where all blocks agree; empty where they don't."""
    attention, feedforward = blocks(model, ATTENTION), blocks(model, FEEDFORWARD)
    heads = {heads_of(model, block) for block in attention}
    inner = {in_width(model, block.out) for block in feedforward}
    hidden = hidden_width(model, attention, feedforward)
    if len(heads) > 1 or None in heads or len(inner) > 1 or not hidden:
        return {}
    sizes = {"hidden_size": hidden}
    for one in filter(None, heads):
        sizes |= {"num_attention_heads": one.query} | dict.fromkeys(KEY_HEADS, one.key) | dict.fromkeys(HEAD_WIDTH, one.width)
    return sizes | {next((name for name in CONFIG_FEEDFORWARD if hasattr(config, name)), "intermediate_size"): width for width in inner}


def _looked_for(model: nn.Module, config: Any) -> set[str]:
    """The names that the architecture reads from its config where stated, and computes otherwise: `getattr(config, "head_dim", ...)`."""
    names: set[str] = set()

    def missing(self: Any, name: str) -> Any:
        names.add(name)
        raise AttributeError(name)

    watched = copy.deepcopy(config)
    watched.__class__ = type(type(config).__name__, (type(config),), {"__getattr__": missing})
    names.clear()
    with contextlib.suppress(Exception), torch.device("meta"):  # sizes that the architecture refuses
        type(model)(watched)
    return names


def rebuilds(model: nn.Module, config: Any, batch: Batch) -> bool:
    """Whether a model of this config fits the weights, and with them answers alike: scales computed from a width must come out the same."""
    weights = model.state_dict()
    try:
        with torch.device("meta"):
            twin = type(model)(config)
        if {name: tensor.shape for name, tensor in twin.state_dict().items()} != {name: tensor.shape for name, tensor in weights.items()}:
            return False
        with random_state_kept():
            twin = type(model)(config)
    except Exception:  # a config that the architecture refuses is the answer
        return False
    first = next(model.parameters())
    twin.to(first.device, first.dtype).load_state_dict(weights)
    return all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in zip(observe(model, batch), observe(twin, batch), strict=True))


def _state(module: nn.Module, names: Sequence[str], value: int) -> None:
    for name in names:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, value)

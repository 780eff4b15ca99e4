"""Write the changed sizes of a transformers model back to its config."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kdkit.storage.structure import Manifest, describe

WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff")
"""Names of the width of the feed-forward layers in HF configs."""
WIDENING = ("intermediate.dense", "mlp.up_proj", "mlp.c_fc", "mlp.fc1", "fc1", "ffn.lin1", "DenseReluDense.wi", "DenseReluDense.wi_0")
QUERIES, KEYS = ("q_proj", "query", "q_lin", "q"), ("k_proj", "key", "k_lin", "k")


def sync_config(model: nn.Module) -> dict[str, Any]:
    """Write the sizes of a uniformly pruned transformers model back to its config, so that plain `from_pretrained` builds it.

    The config is changed only if a new model of the new config has the same tensors and attributes as this model. The remaining layers then
    get the numbers of the new model's layers, which a cache made from the new config expects.

    Returns:
        The changed fields of the config; empty if there is nothing to change or the sizes differ between layers.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return {}
    changes = {key: value for key, value in _sizes(model).items() if hasattr(config, key) and getattr(config, key) != value}
    fresh = _fresh(model, config, changes) if changes else None
    if fresh is None:
        return {}
    for key, value in changes.items():
        setattr(config, key, value)
    for module, twin in zip(model.modules(), fresh.modules(), strict=True):
        if hasattr(twin, "layer_idx"):
            module.layer_idx = twin.layer_idx
    return changes


def fits_config(model: Any) -> bool:
    """Whether a new model of a transformers model's config has the same tensors, so that `from_pretrained` can load it."""
    make: Any = type(model)
    with torch.device("meta"):
        fresh = make(copy.deepcopy(model.config))
    return {name: tensor.shape for name, tensor in model.state_dict().items()} == {name: tensor.shape for name, tensor in fresh.state_dict().items()}


def _fresh(model: nn.Module, config: Any, changes: Mapping[str, Any]) -> nn.Module | None:
    """A model of the changed config, without data; None if its structure differs from this model's."""
    trial = copy.deepcopy(config)
    make: Any = type(model)
    try:
        for key, value in changes.items():
            setattr(trial, key, value)
        with torch.device("meta"):
            fresh = make(trial)
    except Exception:  # a config may raise anything for sizes that it can't express
        return None
    return fresh if _outline(describe(model)) == _outline(describe(fresh)) else None


def _outline(manifest: Manifest) -> dict[str, Any]:
    """What determines a model's outputs, besides the values of its weights."""
    apart = {"layer_idx", "name_or_path"}
    outline: dict[str, Any] = {}
    for name, entry in manifest["modules"].items():
        attributes = {key: value for key, value in entry["attributes"].items() if not key.startswith("_") and key not in apart and not isinstance(value, dict)}
        shapes = {key: spec and spec["shape"] for key, spec in (entry["parameters"] | entry["buffers"]).items()}
        outline[name] = (entry["class"], attributes, shapes)
    return outline


def _sizes(model: Any) -> dict[str, Any]:
    """Sizes by the names of config fields; only those that are equal in every layer."""
    modules = dict(model.named_modules())
    stacks = [module for name, module in modules.items() if isinstance(module, nn.ModuleList) and not any(part.isdigit() for part in name.split("."))]
    attentions = [sizes for module in modules.values() if (sizes := _heads(module))]
    found: dict[str, set[int]] = {"hidden_size": {model.get_input_embeddings().weight.shape[1]}, "num_hidden_layers": {len(stack) for stack in stacks}}
    widths = {_outputs(module) for name, module in modules.items() if name.endswith(WIDENING)}
    found |= dict.fromkeys(WIDTHS, widths)
    found |= {key: {each[key] for each in attentions if key in each} for key in ("num_attention_heads", "num_key_value_heads", "head_dim")}
    return {key: min(values) for key, values in found.items() if len(values) == 1}


def _heads(module: nn.Module) -> dict[str, int]:
    """Head counts of an attention layer, from its projections and the size of one head; empty for other modules."""
    size = getattr(module, "head_dim", None) or getattr(module, "attention_head_size", None)
    children = module._modules
    fused = children.get("c_attn")
    query = next((children[key] for key in QUERIES if key in children), None)
    key = next((children[key] for key in KEYS if key in children), None)
    if not isinstance(size, int) or (fused is None and (query is None or key is None)):
        return {}
    if fused is not None:
        return {"num_attention_heads": _outputs(fused) // (3 * size)}
    return {"num_attention_heads": _outputs(query) // size, "num_key_value_heads": _outputs(key) // size, "head_dim": size}


def _outputs(layer: Any) -> int:
    """The number of outputs of a linear layer, of transformers' Conv1D, or of a Sequential of them."""
    if isinstance(layer, nn.Sequential):
        return _outputs(layer[-1])
    return layer.weight.shape[1] if hasattr(layer, "nf") else layer.weight.shape[0]

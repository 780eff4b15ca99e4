"""Narrower: the same net with every inner width scaled; the channels with the largest weights are kept.

Convolutional nets are cut by torch-pruning's dependency groups (Fang et al., "DepGraph", CVPR 2023, arXiv:2301.12900).
Transformers are built from a narrower configuration, with random weights: their widths are tied to heads.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdkit import Batch, KdError
from kdkit.guards import explain_error
from kdkit.models import evaluating, private_copy, try_call
from kdkit.tasks import main_tensor
from kdkit_distill.evaluation import called

if TYPE_CHECKING:
    from kdkit import Context

_FORWARD = ("intermediate_size", "hidden_dim", "ffn_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim")
"""Attributes of configurations for the width of feed-forward layers."""


def narrowed(model: nn.Module, width: float, context: Context) -> nn.Module:
    """A copy of a model whose inner widths are `width` times as large, with the same inputs and outputs.

    Raises:
        KdError: it can't be traced, or nothing becomes narrower.
    """
    config = getattr(model, "config", None)
    if isinstance(getattr(config, "num_attention_heads", None), int):
        made = _from_config(model, width)
        context.note(f"--student narrow={width:g} of {type(model).__name__} starts with random weights, since a transformer's weights can't be cut to smaller widths")
    else:
        made = _cut(private_copy(model), width, context.example)
    count, before = (sum(weight.numel() for weight in each.parameters()) for each in (made, model))
    if count >= before:
        raise KdError(
            f"--student narrow={width:g} leaves the widths of {type(model).__name__} unchanged", "use a smaller number", "or remove layers: --student layers=..."
        )
    try_call(made, context.example)
    task, batch = context.task, context.example
    output, wanted = (task.prediction(called(each, batch), batch).shape for each in (made, model))
    if output != wanted:
        raise KdError(f"--student narrow={width:g} of {type(model).__name__} would return {tuple(output)} instead of {tuple(wanted)}", "pass your own student")
    return made.eval()


def _from_config(model: nn.Module, width: float) -> nn.Module:
    config: Any = copy.deepcopy(model.config)
    heads, hidden = config.num_attention_heads, config.hidden_size
    fewer = max(1, round(heads * width))
    shared = getattr(config, "num_key_value_heads", None)
    if isinstance(shared, int) and shared < heads:
        groups = max(1, round(shared * width))
        fewer = groups * max(1, round(fewer / groups))
        config.num_key_value_heads = groups
    elif isinstance(shared, int):
        config.num_key_value_heads = fewer
    if hidden % heads:
        raise KdError(f"{type(model).__name__} has {heads} heads in {hidden} values, which can't be made narrower by heads", "remove layers: --student layers=...")
    config.num_attention_heads, config.hidden_size = fewer, fewer * (hidden // heads)
    if getattr(config, "word_embed_proj_dim", None) == hidden:
        config.word_embed_proj_dim = config.hidden_size
    for name in _FORWARD:
        if isinstance(value := getattr(config, name, None), int):
            setattr(config, name, max(1, round(value * width)))
    try:
        return type(model)(config)
    except Exception as error:
        raise KdError(f"{type(model).__name__} can't be built with a narrower configuration: {explain_error(error)}", "--student layers=...") from error


def _cut(model: nn.Module, width: float, batch: Batch) -> nn.Module:
    import torch_pruning

    weight = next(model.parameters(), None)
    batch = batch[:2] if weight is None else batch[:2].to(weight.device)
    answers = _last(model, batch)
    if answers is None:
        raise KdError(f"{type(model).__name__} has no linear or convolutional layer to make narrower", "pass your own student")
    modes = [(module, module.training) for module in model.modules()]
    flags = [(each, each.requires_grad) for each in model.parameters()]
    for each in model.parameters():
        each.requires_grad_(True)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            torch_pruning.pruner.BasePruner(
                model.eval(), batch, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=1 - width, ignored_layers=[answers],
                forward_fn=lambda net, inputs: inputs.call(net), output_transform=main_tensor,
            ).step()  # fmt: skip
    except Exception as error:  # torch-pruning may raise any error for an unsupported model
        message = f"torch-pruning can't trace {type(model).__name__}: {explain_error(error)}"
        raise KdError(message, "remove layers: --student layers=...", "or pass your own student") from error
    for module, mode in modes:
        module.training = mode
    for each, flag in flags:
        each.requires_grad_(flag)
    for each in model.parameters():
        each.grad = None
    return model


def _last(model: nn.Module, batch: Batch) -> nn.Module | None:
    """The output layer: the last one with weights to run; its number of outputs must not change."""
    ran: list[nn.Module] = []
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [module.register_forward_hook(lambda module, inputs, output: ran.append(module)) for module in model.modules() if isinstance(module, kinds)]
    try:
        with evaluating(model):
            batch.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None

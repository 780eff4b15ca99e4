"""Precision: whether an optimizer and an autocast can train weights of their dtypes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from kdkit.errors import KdError
from kdkit.training.options import LoopOptions

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def validate_precision(options: LoopOptions, model: nn.Module, trained: Iterable[nn.Parameter]) -> None:
    """Refuse what would end in a loss or weights that are not finite.

    Args:
        model: all its weights compute under --precision.
        trained: the weights that the optimizer changes.

    Raises:
        KdError: adam is to train float16 weights, or --precision meets weights of another reduced precision.

    >>> net = nn.Linear(2, 2).half()
    >>> validate_precision(LoopOptions(optimizer="sgd"), net, net.parameters())
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    half = next((weight for weight in trained if weight.dtype == torch.float16), None)
    if half is not None and options.optimizer != "sgd":
        raise KdError(
            f"{options.optimizer} can't train float16 weights such as {names.get(id(half), 'those of the stage')}: "
            "small squared gradients and its epsilon of 1e-8 are 0 in float16, and the update is a division by them",
            "train in float32: model.float() before %kd use; convert afterwards",
            "model.bfloat16() is as small, and can be trained",
            "--optimizer sgd",
        )
    if options.precision in _AUTOCAST:
        allowed = (torch.float32, _AUTOCAST[options.precision])
        other = next((name for name, weight in model.named_parameters() if weight.is_floating_point() and weight.dtype not in allowed), None)
        if other is not None:
            dtype = str(model.get_parameter(other).dtype).removeprefix("torch.")
            raise KdError(
                f"--precision {options.precision} computes with float32 weights, and {other} is {dtype}", "model.float() before %kd use", "leave out --precision"
            )


def overflow_hints(weights: Iterable[torch.Tensor]) -> list[str]:
    """What else makes a loss infinite where weights are float16."""
    if any(weight.dtype == torch.float16 for weight in weights):
        return ["float16 holds nothing above 65504, so that activations and gradients overflow: model.float() or model.bfloat16() before %kd use"]
    return []

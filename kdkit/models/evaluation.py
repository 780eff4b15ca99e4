"""Context managers that evaluate a model and restore its modes, flags and the random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from kdkit.guards import gradients_off, random_state_kept
from kdkit.guards.cleanup import always_run


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first tensor; the CPU for a model without tensors."""
    return next((tensor.device for tensors in (model.parameters(), model.buffers()) for tensor in tensors), torch.device("cpu"))


@contextlib.contextmanager
def evaluating_without_side_effects(model: nn.Module) -> Iterator[None]:
    """The model in eval mode under `no_grad`; its modes and the random state are restored afterwards."""
    with random_state_kept(), evaluating(model):
        yield


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with parameters that need no gradients; modes and flags are restored afterwards.

    >>> net = nn.Dropout()
    >>> with frozen(net): net.training
    False
    >>> net.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]

    def restore() -> None:
        for module, mode in modes:
            module.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)

    with always_run(restore):
        for module, _ in modes:
            module.training = False
        for weight, _ in flags:
            weight.requires_grad_(False)
        yield model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode under `no_grad`; its modes are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, mode in modes:
            module.training = mode

    with always_run(restore), gradients_off():
        model.eval()
        yield model

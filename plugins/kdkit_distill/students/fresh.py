"""Fresh students: a net of the same kind with new random weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import nn

from kdkit import KdError
from kdkit.guards import seeded
from kdkit.models import private_copy

if TYPE_CHECKING:
    from kdkit import Context


def reinitialized(model: nn.Module, context: Context, seed: int) -> nn.Module:
    """A copy with new random weights, by transformers' initialization or by the modules' `reset_parameters`.

    Modules with weights but without `reset_parameters` keep their weights; a note names them.

    Raises:
        KdError: none of its modules can be reset.
    """
    fresh = private_copy(model)
    # not the seed itself: a net made under manual_seed(0) would get its original weights again
    with seeded((seed * 1_000_003 + 0x5EED) % 2**32):
        drawn = _from_config(model)
        if drawn is not None:
            fresh.load_state_dict(drawn.state_dict())
            for module in fresh.modules():
                # transformers initializes some scales around zero, which blocks the signal
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.reset_parameters()
            return fresh
        kept = [name or type(module).__name__ for name, module in fresh.named_modules() if not _reset(module)]
    holders = [name for name, module in fresh.named_modules() if module._parameters]
    if len(kept) >= len(holders):
        raise KdError(
            f"{type(model).__name__} has no module with reset_parameters, so it can't be re-initialized",
            "write reset_parameters(self) in the modules that hold weights",
            "or pass an untrained net as --student, and run distill soft for each generation",
        )
    if kept:
        context.note(f"weights kept, no reset_parameters: {', '.join(kept[:4])}{f' and {len(kept) - 4} more' if len(kept) > 4 else ''}")
    return fresh


def _from_config(model: nn.Module) -> nn.Module | None:
    """A new transformers model from the configuration, if it has the same shapes; else None."""
    config = getattr(model, "config", None)
    if not type(model).__module__.startswith("transformers.") or config is None:
        return None
    drawn: nn.Module = type(model)(copy.deepcopy(config))
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (model, drawn)]
    return drawn if shapes[0] == shapes[1] else None


def _reset(module: nn.Module) -> bool:
    """Re-initialize a module's own weights; returns whether that worked, or it has none."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is None:
        return not module._parameters
    reset()
    return True

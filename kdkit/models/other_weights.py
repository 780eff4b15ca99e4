"""Weights outside of layers: those that a stage for certain kinds of layers does not reach, such as the weights of experts and recurrent layers."""

from __future__ import annotations

from collections.abc import Container

from torch import nn

SHARE = 0.01
"""Smaller shares of a model's parameters, such as class tokens and positions, are not worth a note."""


def weights_elsewhere(model: nn.Module, kinds: tuple[type[nn.Module], ...], spared: Container[str] = ()) -> dict[str, str]:
    """The modules whose matrices belong to no layer of these kinds, so that a stage for such layers leaves them alone; name -> the reason.

    Found by what they hold: mixtures of experts keep the weights of all experts in one tensor of three dimensions, recurrent layers keep
    theirs under names of their own. Norms, parametrizations, whose layer counts, and modules that hold less than a hundredth of the
    parameters are left out.

    Args:
        kinds: of the layers that the stage works on.
        spared: names that the user left out, which need no reason.

    >>> net = nn.Sequential(nn.GRU(8, 8), nn.Linear(8, 2))
    >>> weights_elsewhere(net, (nn.Linear,))
    {'0': 'GRU keeps its weights in weight_ih_l0 (24, 8), weight_hh_l0 (24, 8), not in layers of its own (85% of the parameters)'}
    """
    total = sum(weight.numel() for weight in model.parameters())
    return {
        name: _reason(module, matrices, total)
        for name, module in model.named_modules()
        if name not in spared and not _belongs_elsewhere(name, module, kinds) and (matrices := _matrices(module)) and _size(matrices) >= SHARE * total
    }


_OTHER_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.ParameterList, nn.ParameterDict)
"""Layers that the user sees are of another kind, and containers of parameters that their owner names."""


def _belongs_elsewhere(name: str, module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return isinstance(module, (*kinds, *_OTHER_LAYERS)) or "parametrizations" in name.split(".")


def _matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    return {key: weight for key, weight in module._parameters.items() if weight is not None and weight.is_floating_point() and weight.dim() > 1 and len(weight) > 1}


def _size(matrices: dict[str, nn.Parameter]) -> int:
    return sum(weight.numel() for weight in matrices.values())


def _reason(module: nn.Module, matrices: dict[str, nn.Parameter], total: int) -> str:
    some = ", ".join(f"{key} {tuple(weight.shape)}" for key, weight in list(matrices.items())[:2]) + (", ..." if len(matrices) > 2 else "")
    return f"{type(module).__name__} keeps its weights in {some}, not in layers of its own ({_size(matrices) / total:.0%} of the parameters)"

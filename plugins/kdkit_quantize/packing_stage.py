"""What the stages that pack weights share: which layers they pack, how tied weights stay tied, and what they say about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdkit import Context, KdError, Stage, Trait, param
from kdkit.measurement import size_bytes
from kdkit.models import linear_kinds, select_layers, untouchable, weights_elsewhere
from kdkit_quantize.group_quantization import GroupCode
from kdkit_quantize.packed_layers import is_transposed, packed_kind
from kdkit_quantize.packed_weight import PackedWeight

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a layer that can be packed, with its outputs (of an embedding: its entries) as the first axis."""
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight.detach().T if is_transposed(layer) else weight.detach()


class PackingStage(Stage):
    """Replace the weights of layers by packed integers."""

    requires: ClassVar = frozenset({Trait.FLOAT_WEIGHTS})
    forbids: ClassVar = frozenset({Trait.ONNX, Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.MASKS_PENDING})
    adds: ClassVar = frozenset({Trait.PACKED_WEIGHTS})
    removes: ClassVar = frozenset({Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE, Trait.TRAINABLE})

    layers: tuple[str, ...] = param((), "layers to pack: linear layers, convolutions, embeddings; default: all", names="layers")
    skip: tuple[str, ...] = param((), "layers that stay in float, such as the output head", names="layers")
    embeddings: bool = param(True, "pack embedding tables as well")

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Patterns that select nothing, and models without a layer that can be packed."""
        self.chosen(model)
        return ()

    def layer_widths(self, model: nn.Module, chosen: Mapping[str, nn.Module], context: Context) -> dict[str, int]:
        """The bits of an integer for each layer."""
        raise NotImplementedError

    def code(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> GroupCode:
        """A weight as integers.

        Args:
            weight: (rows, columns), the outputs of the layer as rows.
            bits: of an integer.
            moment: (columns, columns), the second moment of the layer's inputs, where it was observed.
        """
        raise NotImplementedError

    def packed_weight(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> nn.Module:
        """The weight of a layer in its packed form; the arguments are those of `code`, with a weight of any shape."""
        return PackedWeight(self.code(weight.flatten(1), bits, moment), bits, weight.shape, weight.dtype)

    def rounds(self, model: nn.Module, chosen: Mapping[str, nn.Module], context: Context) -> Iterator[tuple[dict[str, nn.Module], dict[str, Tensor]]]:
        """The layers that are packed together, and the moments of their inputs; the layers of earlier rounds are packed by then."""
        yield dict(chosen), {}

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Pack the weights of the chosen layers."""
        chosen, left = self.chosen(model)
        before, done = size_bytes(model), 0
        packed: dict[tuple[int, bool], nn.Module] = {}
        widths = self.layer_widths(model, chosen, context)
        for layers, moments in self.rounds(model, chosen, context):
            made: dict[nn.Module, nn.Module] = {}
            for name, layer in layers.items():
                context.progress(done, len(chosen), name)
                key = id(layer._parameters["weight"]), is_transposed(layer)
                if key not in packed:
                    packed[key] = self.packed_weight(weight_of(layer), widths[name], moments.get(name))
                made[layer] = packed_kind(layer)(layer, packed[key])
                done += 1
            model = replaced(model, made)
        _tell(model, chosen, left, before, context)
        return model

    def chosen(self, model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
        """The layers to pack by name, and the reasons of those that stay in float.

        Raises:
            KdError: a pattern matches nothing, or no layer can be packed.
        """
        kinds = (*linear_kinds(), *CONVOLUTIONS, nn.Embedding)
        spared = select_layers(model, self.skip)
        if not self.embeddings and not self.layers:
            kinds = kinds[:-1]
        found = select_layers(model, self.layers, kinds) if self.layers else {name: each for name, each in model.named_modules() if isinstance(each, kinds)}
        among = {name: layer for name, layer in found.items() if name not in spared}
        reasons = {name: reason for name, layer in among.items() if (reason := _obstacle(layer))} | untouchable(among)
        reasons |= _tied_to_others(model, {name: layer for name, layer in among.items() if name not in reasons})
        elsewhere = {} if self.layers else weights_elsewhere(model, kinds, spared)
        chosen = {name: layer for name, layer in among.items() if name not in reasons}
        if not chosen:
            why = [f"{name or 'the model'}: {reason}" for name, reason in (reasons | elsewhere).items()]
            raise KdError(f"{self.title}: no layer can be packed", *(why[:8] or [f"{type(model).__name__} has no linear layer, convolution or embedding to pack"]))
        return chosen, reasons | elsewhere


def replaced(model: nn.Module, made: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The model with each layer of `made` replaced, under all of its names.

    >>> net, other = nn.Sequential(nn.ReLU()), nn.Tanh()
    >>> replaced(net, {net[0]: other})
    Sequential(
      (0): Tanh()
    )
    """
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in made:
                parent._modules[name] = made[child]
    return made.get(model, model)


def _obstacle(layer: nn.Module) -> str:
    """Why a layer can't be packed, or an empty string."""
    weight = layer._parameters.get("weight")
    if packed_kind(layer) is None or "forward" in vars(layer):
        return f"{type(layer).__name__} has a forward of its own"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks"
    if getattr(layer, "max_norm", None) is not None:
        return "it rescales its rows at each call (max_norm)"
    if weight is None or not weight.is_floating_point() or type(weight.data) is not Tensor:
        return ""  # computed or packed, which `untouchable` states
    if weight.is_meta or not weight.numel():
        return "its weight has no numbers"
    return "" if torch.isfinite(weight).all() else "its weight has values that are not finite"


def _tied_to_others(model: nn.Module, chosen: Mapping[str, nn.Module]) -> dict[str, str]:
    """The layers whose weight other modules use that are not packed as well, or that hold it the other way round."""
    holders: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for name, module in model.named_modules():
        for weight in module._parameters.values():
            if weight is not None:
                holders[id(weight)][name] = module
    reasons: dict[str, str] = {}
    for name, layer in chosen.items():
        others = {other: module for other, module in holders[id(layer._parameters["weight"])].items() if module is not layer}
        if apart := [other for other, module in others.items() if other not in chosen or is_transposed(module) != is_transposed(layer)]:
            reasons[name] = f"its weight is tied to {', '.join(apart)}, which is not packed with it"
    return reasons


def _tell(model: nn.Module, chosen: Mapping[str, nn.Module], left: Mapping[str, str], before: int, context: Context) -> None:
    for reason in dict.fromkeys(left.values()):
        context.note(
            f"{'left alone' if 'packed weights' in reason else 'in float'}: {', '.join(name or 'the model' for name, its in left.items() if its == reason)}: {reason}"
        )
    after = size_bytes(model)
    context.note(f"{len(chosen)} {'layers' if len(chosen) > 1 else 'layer'} packed: {before:,} bytes became {after:,} ({before / after:.2f}x smaller)")
    context.note("in torch each call computes the float weights from the integers: smaller, not faster")

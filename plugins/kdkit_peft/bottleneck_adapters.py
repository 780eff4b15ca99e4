"""Adapters: small two-layer nets in a frozen transformer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from torch import nn

from kdkit import Context, KdError, Needs, TrainPart, TrainStage, Trait, param
from kdkit.models import linear_kinds, select_layers, trace_layer_usage, untouchable
from kdkit_peft.adapter_stage import FROZEN, AdapterPart
from kdkit_peft.adapters import CONVOLUTIONS
from kdkit_peft.bottleneck import adapt, widths

ATTENTION_OUTPUTS = r"(attention\.output\.dense|attn\.c_proj|attn\.proj|attention\.dense|(self_attn|attn|attention)\.(o_proj|out_proj|out_lin)|\w*Attention\.o)"
"""The projection behind attention, in the names of transformers and timm."""

FEED_FORWARD_OUTPUTS = r"((?<!attention\.)output\.dense|mlp\.(c_proj|down_proj|fc2|dense_4h_to_h)|ffn\.(lin2|fc2)|feed_forward\.output_dense|layers?\.\d+\.fc2|wo)"
"""The second feed-forward layer, in the names of transformers and timm."""


class Adapters(TrainStage):
    """Train small two-layer nets, up(activation(down(x))), in a frozen model.

    `houlsby` puts one behind the projection of attention and one behind the second feed-forward layer of each block (Houlsby et al., 2019,
    arXiv:1902.00751), `pfeiffer` only the latter (Pfeiffer et al., 2021, arXiv:2005.00247), both before the sum with the skip; `parallel`
    adds scale · up(activation(down(x))) of the second feed-forward layer's input to its output (He et al., 2022, arXiv:2110.04366). `up`
    starts at 0, so the outputs start unchanged. A layer `name` becomes `name.base` beside `name.adapter`.

    Adapters are not linear, so nothing merges them: they remain a part of the model, at 2·width·d + width + d parameters each. All other
    weights stay bit for bit, and may train again afterwards.
    """

    id: ClassVar[str] = "peft.adapters"
    known_as: ClassVar[tuple[str, ...]] = ("bottleneck adapters", "Houlsby adapters", "Pfeiffer adapters", "parallel adapters")
    needs: ClassVar[Needs] = Needs(example=True, train=True)
    requires: ClassVar[Iterable[str]] = {Trait.TRAINABLE, Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT}
    tried_as: ClassVar[str] = "--targets second --reduction 4"

    kind: Literal["houlsby", "pfeiffer", "parallel"] = param("pfeiffer", "where the adapters are", main=True)
    reduction: float = param(16.0, "the width of an adapter is that of the layer divided by it", ge=1, search=(2, 64), main=True)
    activation: Literal["relu", "gelu", "silu"] = param("relu", "between the two layers of an adapter")
    scale: float = param(1.0, "of parallel adapters", gt=0)
    targets: tuple[str, ...] = param(
        (), "layers that get an adapter, linear or convolutions; default: those that `kind` names in the transformers that kdkit knows", names="layers"
    )
    skip: tuple[str, ...] = param((), "layers without adapters", names="layers")
    also_train: tuple[str, ...] = param((), "layers to train fully in addition to the adapters, such as a new classifier", names="layers")
    loss: float = param(1.0, "weight of the task's loss; 0 trains for the other stages of a together group only, and needs no labels", ge=0, advanced=True)

    def required_inputs(self) -> Needs:
        return self.needs | Needs(labels=self.loss > 0)

    def check(self, model: nn.Module, context: Context) -> Iterator[str]:
        self._selected(model)
        select_layers(model, self.also_train)
        yield from super().check(model, context)

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Put adapters at the layers, and freeze all other weights."""
        trained = select_layers(model, self.also_train)
        layers = self._adaptable(model, context)
        setattr(model, FROZEN, tuple(name for name, weight in model.named_parameters() if not weight.requires_grad))
        model.requires_grad_(False)
        made = {layer: adapt(layer, max(round(widths(layer)[1] / self.reduction), 1), self.activation, self.kind == "parallel", self.scale) for layer in layers.values()}
        for parent in list(model.modules()):
            for key, child in parent._modules.items():
                if child is not None and child in made:
                    parent._modules[key] = made[child]
        for name in layers:
            context.note_rename(name, f"{name}.base")
        for module in trained.values():
            module.requires_grad_(True)
        counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
        total, learning = sum(count for count, _ in counts), sum(count for count, flag in counts if flag)
        context.note(f"{len(layers)} {self.kind} adapters: {learning:,} of {total:,} parameters train ({learning / total:.2%})")
        return model

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        return AdapterPart(self.loss, self.also_train)

    def finish(self, model: nn.Module, context: Context) -> nn.Module:
        """Let the weights train that trained before, and the adapters."""
        frozen = {name.replace(".base.", ".") for name in getattr(model, FROZEN, ())}
        for name, weight in model.named_parameters():
            weight.requires_grad_(weight.is_floating_point() and name.replace(".base.", ".") not in frozen)
        if FROZEN in vars(model):
            delattr(model, FROZEN)
        return model

    def _selected(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers that the options name; by default those that `kind` means."""
        kinds = (*linear_kinds(), *CONVOLUTIONS)
        spared = {**select_layers(model, self.skip), **select_layers(model, self.also_train)}
        if self.targets:
            found = select_layers(model, self.targets, kinds)
        else:
            pattern = rf"(.*\.)?({ATTENTION_OUTPUTS}|{FEED_FORWARD_OUTPUTS})" if self.kind == "houlsby" else rf"(.*\.)?{FEED_FORWARD_OUTPUTS}"
            found = {name: layer for name, layer in model.named_modules() if isinstance(layer, linear_kinds()) and re.fullmatch(pattern, name)}
        found = {name: layer for name, layer in found.items() if name not in spared}
        if not found:
            some = [name for name, module in model.named_modules() if isinstance(module, kinds)]
            raise KdError(
                f"peft adapters: {type(model).__name__} has no layers with names of attention and feed-forward outputs that kdkit knows",
                "--targets PATTERN names the layers that get an adapter",
                f"its layers: {', '.join(some[:8])}" if some else "it has no linear layers and no convolutions",
            )
        return found

    def _adaptable(self, model: nn.Module, context: Context) -> dict[str, Any]:
        """The selected layers that a wrapper can replace; a note names the others."""
        layers = self._selected(model)
        seen = trace_layer_usage(model, context.example, layers)
        reasons = {name: self._obstacle(name, layer, seen[name].read_by, seen[name].called) for name, layer in layers.items()} | untouchable(layers)
        for reason in dict.fromkeys(filter(None, reasons.values())):
            context.note(f"skipped {', '.join(name for name, its in reasons.items() if its == reason)}: {reason}")
        kept = {name: layer for name, layer in layers.items() if not reasons[name]}
        if not kept:
            raise KdError("peft adapters: no layer can get an adapter", *(f"{name or 'the model'}: {reason}" for name, reason in list(reasons.items())[:8]))
        return kept

    def _obstacle(self, name: str, layer: Any, readers: set[str], called: bool) -> str:
        if not name:
            return "it is the whole model; put it into an nn.Sequential"
        if readers:
            return f"{' and '.join(sorted(readers))} reads its weight directly"
        if not called:
            return "the model does not call it"
        return "parallel adapters are for linear layers" if self.kind == "parallel" and isinstance(layer, CONVOLUTIONS) else ""

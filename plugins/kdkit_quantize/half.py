"""Half precision: weights and arithmetic in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdkit import Batch, Context, KdError, Needs, Stage, Trait, param
from kdkit.models import device_of, evaluating

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Half(Stage):
    """Hold and compute everything in 16 bits: half the size, and faster on GPUs and on CPUs with 16-bit units.

    `bf16` has the range of float32 with 8 bits of precision, `fp16` 11 bits of precision up to 65504. Weights beyond that are refused, and so is a
    model whose layers overflow on the example batch, by the name of the layer. Floating inputs are cast; outputs are in 16 bits.
    """

    id: ClassVar = "quantize.half"
    known_as: ClassVar[tuple[str, ...]] = ("half precision", "float16", "bfloat16")
    needs: ClassVar = Needs(example=True)
    requires: ClassVar = frozenset({Trait.FLOAT_WEIGHTS})
    forbids: ClassVar = frozenset({Trait.ONNX, Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.MASKS_PENDING})

    dtype: Literal["fp16", "bf16"] = param("bf16", "bf16 keeps the range of float32, fp16 has more precision", main=True, search=("fp16", "bf16"))

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Weights that the dtype can't hold."""
        dtype = DTYPES[self.dtype]
        floating = dict(_floating(model))
        if floating and all(tensor.dtype == dtype for tensor in floating.values()):
            yield f"quantize half: the model is in {self.dtype} already"
        largest = torch.finfo(dtype).max
        for name, tensor in floating.items():
            if tensor.numel() and not tensor.is_meta and torch.isfinite(tensor).all() and float(tensor.abs().max()) > largest:
                yield f"quantize half: {name} holds {float(tensor.abs().max()):.4g}, and {self.dtype} nothing above {largest:.4g}; use --dtype bf16"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Convert, and look for what overflows on the example batch."""
        dtype, batch = DTYPES[self.dtype], Batch(context.example.args, context.example.kwargs).to(device_of(model))
        lost, total = _vanishing(model, dtype), sum(tensor.numel() for _, tensor in _floating(model))
        known = set(layers_not_finite(model, batch))
        context.progress(1, 2, "looking for overflow")
        model.to(dtype)
        overflowing = [name for name in layers_not_finite(model, batch) if name not in known]
        if overflowing:
            raise KdError(
                f"quantize half: in {self.dtype} the output of {overflowing[0] or 'the model'} overflows on the example batch",
                "--dtype bf16 has the range of float32" if self.dtype == "fp16" else "look for very large values in the example batch",
                *([f"so do {len(overflowing) - 1} more layers after it"] if len(overflowing) > 1 else []),
            )
        if lost:
            context.note(f"{lost:,} of {total:,} numbers are too small for {self.dtype} and became 0")
        return model


def layers_not_finite(model: nn.Module, batch: Batch) -> list[str]:
    """The modules whose outputs on a batch hold inf or nan, in the order in which they finish.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> net[1].bias.data[0] = torch.inf
    >>> layers_not_finite(net, Batch((torch.ones(1, 2),)))
    ['1', '']
    """
    found: dict[str, None] = {}

    def watch(name: str, module: nn.Module) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(torch.isfinite(each).all() for each in tree_leaves(output) if isinstance(each, Tensor) and each.is_floating_point()):
                found[name] = None

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in model.named_modules()]
    try:
        with evaluating(model), torch.no_grad():
            batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating tensors that `model.to` converts."""
    yield from ((name, tensor.detach()) for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_floating_point())


def _vanishing(model: nn.Module, dtype: torch.dtype) -> int:
    """How many numbers become zero."""
    return sum(int(((tensor != 0) & (tensor.to(dtype) == 0)).sum()) for _, tensor in _floating(model))

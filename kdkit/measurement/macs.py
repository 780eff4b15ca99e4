"""Count the multiply-accumulate operations (MACs) of one call.

Nothing is timed or sampled, so the same model and batch give the same count. The model's modes, gradients and statistics
and the random state do not change.

Matrix products, convolutions and attention count: 1 MAC is 2 FLOPs. Element-wise operations and look-ups count as 0.
Causal or padded attention counts in full, since it is computed in full by default.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from kdkit.guards.dispatch_modes import without_compiler
from kdkit.guards.fused_kernels import without_kernels
from kdkit.models.evaluation import device_of, evaluating_without_side_effects

if TYPE_CHECKING:
    from kdkit.data import Batch

Shape = tuple[int, ...]

_FUSED = ("mha fastpath", "mkldnn", "cudnn", "flash attention", "mem_efficient attention", "cudnn attention")
"""Off while operations are counted, so that attention and recurrent layers run as separate matrix products."""


def count_macs(model: nn.Module, batch: Batch) -> int:
    """Multiply-accumulates of one call on a batch.

    The count is also exact for fused attention, the fast path of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`,
    recurrent layers (including packed sequences) and int8 modules, which usual counters get wrong. A model that does not run torch
    operators implements `kdkit_macs(batch) -> int`.

    >>> from kdkit.data import Batch
    >>> count_macs(nn.Linear(3, 4), Batch((torch.ones(2, 3),)))
    24
    """
    return macs_by_module(model, batch)[""]


def macs_by_module(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Multiply-accumulates of one call on a batch, by the name of the module whose call ran them; "" is the model.

    The count of a module includes its children. A module that is never called, such as a ModuleList, is absent.

    >>> from kdkit.data import Batch
    >>> macs_by_module(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), Batch((torch.ones(2, 3),)))
    {'': 40, '0': 24, '1': 16}
    """
    if answer := getattr(model, "kdkit_macs", None):
        return {"": answer(batch)}
    model = getattr(model, "_orig_mod", model)
    names = {module: name for name, module in model.named_modules()}
    counts: dict[str, int] = {}
    begun: list[int] = []

    def begin(module: nn.Module, inputs: Any) -> None:
        begun.append(counter.get_total_flops())

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        flops = counter.get_total_flops() - begun.pop()
        if module in names:
            counts[names[module]] = counts.get(names[module], 0) + flops // 2

    with evaluating_without_side_effects(model), without_kernels(*_FUSED), FlopCounterMode(display=False, custom_mapping=_rules()) as counter, _watching(begin, end):
        assert counter.mode is not None  # it is entered
        without_compiler(counter.mode)
        batch.to(device_of(model)).call(model)
    # a model may be called by another method than its forward
    return {name: count for name in names.values() if (count := counts.get(name)) is not None} | {"": counter.get_total_flops() // 2}


@contextlib.contextmanager
def _watching(begin: Callable, end: Callable) -> Iterator[None]:
    """Call `begin` before and `end` after the forward of every module."""
    handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rules() -> dict[Any, Callable[..., int]]:
    """FLOPs of the operators that are missing in torch's table, from the shapes of an operator's arguments and result."""
    aten, quantized = torch.ops.aten, torch.ops.quantized
    rules: dict[Any, Callable[..., int]] = {aten._trilinear: _trilinear, aten.addbmm: _addbmm, aten.addmv: _added_rows}
    rules |= dict.fromkeys([aten.mv, aten.dot, aten.vdot, aten._int_mm, aten._weight_int8pack_mm, aten._grouped_mm], _rows)
    rules |= {aten.quantized_lstm: functools.partial(_recurrent, gates=4), aten.quantized_gru: functools.partial(_recurrent, gates=3)}
    rules |= {getattr(quantized, name): _rows for name in _LINEARS if hasattr(quantized, name)}
    rules |= {getattr(quantized, name): _quantized_convolution for name in _CONVOLUTIONS if hasattr(quantized, name)}
    return rules


_LINEARS = ("linear", "linear_relu", "linear_leaky_relu", "linear_tanh", "linear_dynamic", "linear_relu_dynamic", "linear_dynamic_fp16", "linear_relu_dynamic_fp16")
_CONVOLUTIONS = [f"{name}{dimensions}d{more}" for name in ("conv", "conv_transpose") for dimensions in (1, 2, 3) for more in ("", "_relu", "_dynamic")]


def _rows(first: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """Each element of the result is a dot product over the first input's last dimension."""
    return 2 * prod(out_shape) * first[-1]


def _added_rows(bias: Shape, first: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return _rows(first, out_shape=out_shape)


def _addbmm(bias: Shape, first: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """(batch, n, m) times (batch, m, p), summed over the batch."""
    return 2 * prod(out_shape) * first[0] * first[2]


def _trilinear(first: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """`nn.Bilinear`: each item is multiplied with the complete weight (out, in1, in2), and the result (out, in2) with the other input."""
    outputs, _, second = weight[-3:]
    return 2 * prod(out_shape) // outputs * (prod(weight[-3:]) + outputs * second)


def _quantized_convolution(image: Shape, packed: Any, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """The weight (out, in / groups, ...) is applied once at each position of the result, or of the image for a transposed convolution."""
    reach = prod(packed.unpack()[0].shape[1:])
    return 2 * reach * prod(image if packed.transpose() else out_shape)


def _recurrent(data: Shape, *args: Any, out_shape: tuple[Shape, ...], gates: int, **kwargs: Any) -> int:
    """A dynamic int8 LSTM or GRU: data (..., features), a state (layers x directions, batch, hidden)."""
    state = next(item[0] if isinstance(item, list) else item for item in args if isinstance(item, list) or len(item) == 3)
    hidden, features = state[-1], data[-1]
    directions = out_shape[0][-1] // hidden
    layers = state[0] // directions
    inputs = features + (layers - 1) * directions * hidden
    return 2 * prod(data[:-1]) * directions * gates * hidden * (inputs + layers * hidden)

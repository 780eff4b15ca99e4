"""Counting: parameters, bytes, MACs, bytes moved and peak memory, by what a model holds and what one call does.

Nothing here is timed or sampled, so the same model and batch give the same figure. The model's modes, gradients, statistics
and the random state are left as they were.

MACs are those of matrix products, convolutions and attention: 1 MAC is 2 FLOPs; element-wise work and look-ups are 0.
A causal or padded attention counts in full, as it is computed by default.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kdkit.models import evaluating

if TYPE_CHECKING:
    from kdkit.data import Batch

Shape = tuple[int, ...]

# what a model holds


def count_parameters(model: nn.Module) -> int:
    """The parameters of a model, those shared by several modules once, packed ones by how many numbers they stand for.

    A model that is not made of tensors answers for itself with `kdkit_parameters() -> int`.

    >>> count_parameters(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)))
    24
    """
    answer = getattr(model, "kdkit_parameters", None)
    return answer() if answer else sum(parameters_by_name(model).values())


def parameters_by_name(model: nn.Module) -> dict[str, int]:
    """How many numbers each parameter stands for; what is shared stands under its first name alone.

    >>> parameters_by_name(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    {'0.weight': 12, '0.bias': 4}
    """
    packed = {_key(tensor): (name, tensor) for name, tensor in reversed(packed_tensors(model))}
    counts = {name: _numbers(weight) for name, weight in model.named_parameters()}
    for name, tensor in reversed(packed.values()):
        counts[name] = counts.get(name, 0) + tensor.numel()
    return counts


def size_bytes(model: nn.Module) -> int:
    """The bytes of a model's state as a safetensors file holds them (its short header apart): what is shared once.

    Packed weights count by the bytes they are packed in, with their scales and zero points; buffers that are not part of the
    state count nothing. A model that is not made of tensors answers for itself with `kdkit_size_bytes() -> int`.

    >>> size_bytes(nn.Linear(3, 4))
    64
    """
    answer = getattr(model, "kdkit_size_bytes", None)
    return answer() if answer else sum(bytes_by_name(model).values())


def bytes_by_name(model: nn.Module) -> dict[str, int]:
    """The bytes of each entry of a model's state; what is shared stands under its first name alone.

    >>> bytes_by_name(nn.Linear(3, 4))
    {'weight': 48, 'bias': 16}
    """
    state = model.state_dict()
    parts = [(name, part) for name, value in state.items() for tensor in _tensors_in(value) for part in plain_parts(tensor)]
    sizes: dict[str, int] = dict.fromkeys(state, 0)
    for name, part in {_key(part): (name, part) for name, part in reversed(parts)}.values():
        sizes[name] += part.nbytes
    return sizes


def _numbers(weight: Tensor) -> int:
    """How many numbers a parameter stands for; a 4-bit one of bitsandbytes keeps two in each of its elements."""
    packed_from = getattr(getattr(weight, "quant_state", None), "shape", None)
    return weight.numel() if packed_from is None else prod(packed_from)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of one entry of a state; quantized modules keep tuples and script objects there."""
    if isinstance(value, torch.ScriptObject):
        value = value.__getstate__()
    for item in tree_leaves(value):
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, torch.ScriptObject):
            yield from _tensors_in(item)


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is stored in."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_parts(getattr(tensor, name))
    elif tensor.is_sparse:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.is_quantized and tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams):
        yield from (tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
    else:
        yield tensor


def _key(tensor: Tensor) -> tuple[int, int, int]:
    """The same for two tensors, alive together, that are the same bytes; those on the meta device have a storage and no address."""
    if tensor.layout is not torch.strided:
        return id(tensor), 0, tensor.numel()
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.nbytes


def packed_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights and biases that quantized modules keep in their state and not among their parameters, by their names there."""
    if not any(type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")) for module in model.modules()):
        return []
    known = {name for tensors in (model.named_parameters, model.named_buffers) for name, _ in tensors(remove_duplicate=False)}
    state = model.state_dict().items()
    return [(name, tensor) for name, value in state if name not in known and name.rpartition(".")[2] not in ("scale", "zero_point") for tensor in _tensors_in(value)]


# what one call does


def count_macs(model: nn.Module, batch: Batch) -> int:
    """Multiply-accumulates of one call on a batch.

    Exact also where usual counters are wrong: fused attention, the fast path of `nn.MultiheadAttention` and
    `nn.TransformerEncoderLayer`, recurrent layers (packed sequences too) and int8 modules. A model that is not made of torch
    operators answers for itself with `kdkit_macs(batch) -> int`.

    >>> from kdkit.data import Batch
    >>> count_macs(nn.Linear(3, 4), Batch((torch.ones(2, 3),)))
    24
    """
    return macs_by_module(model, batch)[""]


def macs_by_module(model: nn.Module, batch: Batch) -> dict[str, int]:
    """Multiply-accumulates of one call on a batch, by the name of the module in whose calls they happened; "" is the model.

    Those of a module's parts count in it too. A module that is not called itself, such as a list, is absent.

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

    with undisturbed(model), _taken_apart(), FlopCounterMode(display=False, custom_mapping=_rules()) as counter, _watching(begin, end):
        batch.to(device_of(model)).call(model)
    # a model may answer by another method than its forward
    return {name: count for name in names.values() if (count := counts.get(name)) is not None} | {"": counter.get_total_flops() // 2}


@contextlib.contextmanager
def _watching(begin: Callable, end: Callable) -> Iterator[None]:
    """Functions that are called before and after the forward of every module."""
    handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first tensor is."""
    return next((tensor.device for tensors in (model.parameters(), model.buffers()) for tensor in tensors), torch.device("cpu"))


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients, the random state put back afterwards."""
    device = device_of(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluating(model):
        yield


@contextlib.contextmanager
def _taken_apart() -> Iterator[None]:
    """Fused kernels off, so that attention and recurrent layers are seen as the products they are made of."""
    switches: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = torch.backends.mha.get_fastpath_enabled(), *(switch.enabled for switch in switches)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for switch in switches:
            switch.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
        for switch, enabled in zip(switches, before[1:], strict=True):
            switch.enabled = enabled


def _rules() -> dict[Any, Callable[..., int]]:
    """FLOPs of the operators that torch's own table lacks, from the shapes of an operator's arguments and of its result."""
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
    """Each number of the result is a dot product over the first input's last dimension."""
    return 2 * prod(out_shape) * first[-1]


def _added_rows(bias: Shape, first: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return _rows(first, out_shape=out_shape)


def _addbmm(bias: Shape, first: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """(batch, n, m) times (batch, m, p), summed over the batch."""
    return 2 * prod(out_shape) * first[0] * first[2]


def _trilinear(first: Shape, weight: Shape, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """`nn.Bilinear`: each item meets the whole weight (out, in1, in2), and what is left, (out, in2), the other input."""
    outputs, _, second = weight[-3:]
    return 2 * prod(out_shape) // outputs * (prod(weight[-3:]) + outputs * second)


def _quantized_convolution(image: Shape, packed: Any, *args: Any, out_shape: Shape, **kwargs: Any) -> int:
    """Each position of the result, or of the image when transposed, meets the weight (out, in / groups, ...) once."""
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


# what one call reads, writes and keeps


@dataclass(frozen=True)
class Traffic:
    """What one call did to memory.

    Attributes:
        moved_bytes: read and written by its operators, each tensor once for each operator; views move nothing, a look-up
            reads only the rows it takes.
        peak_bytes: the most that was alive at once: weights, inputs, and what the operators made. What a kernel needs within
            itself is not seen.
    """

    moved_bytes: int
    peak_bytes: int


def traffic(call: Callable[[Batch], Any], batch: Batch, model: nn.Module) -> Traffic | None:
    """Watch `call(batch)`, in which `model` runs; None if no torch operator ran, as in another runtime.

    >>> from kdkit.data import Batch
    >>> net = nn.Linear(3, 4, bias=False)
    >>> traffic(lambda batch: batch.call(net), Batch((torch.ones(2, 3),)), net)
    Traffic(moved_bytes=104, peak_bytes=104)
    """
    with undisturbed(model), _Watch() as watch:
        call(batch)
    return Traffic(watch.moved, watch.made_at_most + _resident(watch, model)) if watch.operators else None


def _resident(watch: _Watch, model: nn.Module) -> int:
    """Bytes that were there before the call: what it read, and weights it happened not to need.

    Where the call read none of the model's own tensors it ran a copy (on another device, in another precision).
    """
    own = _storages(_strided(model.parameters())) | _storages(_strided(model.buffers()))
    if own and not own.keys() & watch.found.keys():
        return sum(watch.found.values())
    packed = {_key(tensor): tensor for _, tensor in packed_tensors(model)}
    return sum((own | watch.found).values()) + sum(tensor.nbytes for tensor in packed.values())


class _Watch(TorchDispatchMode):
    """Follows the storages that operators find, make and drop."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.moved = self.made_at_most = 0
        self.found: dict[StorageWeakRef, int] = {}
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        inputs = list(_strided(tree_leaves((args, kwargs))))
        taken = _storages(inputs)
        self.found |= {ref: size for ref, size in taken.items() if ref not in self.made}
        result = func(*args, **(kwargs or {}))
        outputs = list(_strided(tree_leaves(result)))
        fresh = {ref: size for ref, size in _storages(outputs).items() if ref not in taken and ref not in self.found}
        self.operators += 1
        if fresh or func._schema.is_mutable:
            read = [*inputs[1:], *outputs] if func.overloadpacket is torch.ops.aten.embedding else inputs
            self.moved += sum(_held(tensor) for tensor in (*read, *outputs))
        self.made = {ref: size for ref, size in (self.made | fresh).items() if not ref.expired()}
        self.made_at_most = max(self.made_at_most, sum(self.made.values()))
        return result


def _storages(tensors: Iterable[Tensor]) -> dict[StorageWeakRef, int]:
    """The bytes of each storage; what holds a storage weakly keeps its address from being used again."""
    return {StorageWeakRef(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}


def _strided(items: Iterable[Any]) -> Iterator[Tensor]:
    """The plain tensors with a storage that the items are made of."""
    return (part for item in items if isinstance(item, Tensor) for part in plain_parts(item) if part.layout is torch.strided)


def _held(tensor: Tensor) -> int:
    """Its bytes; an expanded tensor repeats its storage without holding more."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())

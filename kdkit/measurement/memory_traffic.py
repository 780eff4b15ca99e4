"""The memory traffic of a call: bytes read and written, and the peak."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdkit.guards.dispatch_modes import without_compiler
from kdkit.measurement.size import packed_tensors, storage_key
from kdkit.models.evaluation import evaluating_without_side_effects
from kdkit.models.packed_tensors import plain_parts

if TYPE_CHECKING:
    from kdkit.data import Batch


@dataclass(frozen=True)
class Traffic:
    """The memory traffic of one call.

    Attributes:
        moved_bytes: bytes read and written by operators, each tensor once per operator; views move nothing, and an embedding
            look-up reads only the selected rows.
        peak_bytes: the largest number of bytes alive at once: weights, inputs and the operators' results. The workspace of a
            kernel is not counted.
    """

    moved_bytes: int
    peak_bytes: int


def traffic(call: Callable[[Batch], Any], batch: Batch, model: nn.Module) -> Traffic | None:
    """Run `call(batch)`, which calls `model`, and count its memory traffic; None if no torch operator ran, as in another runtime.

    >>> from kdkit.data import Batch
    >>> net = nn.Linear(3, 4, bias=False)
    >>> traffic(lambda batch: batch.call(net), Batch((torch.ones(2, 3),)), net)
    Traffic(moved_bytes=104, peak_bytes=104)
    """
    with evaluating_without_side_effects(model), without_compiler(_Watch()) as watch:
        call(batch)
    return Traffic(watch.moved, watch.made_at_most + _resident(watch, model)) if watch.operators else None


def _resident(watch: _Watch, model: nn.Module) -> int:
    """Bytes that existed before the call: the tensors it read, and the weights it did not use.

    If the call read none of the model's tensors, it ran a copy (on another device or in another precision).
    """
    own = _storages(_strided(model.parameters())) | _storages(_strided(model.buffers()))
    if own and not own.keys() & watch.found.keys():
        return sum(watch.found.values())
    packed = {storage_key(tensor): tensor for _, tensor in packed_tensors(model)}
    return sum((own | watch.found).values()) + sum(tensor.nbytes for tensor in packed.values())


class _Watch(TorchDispatchMode):
    """Records the storages that operators read, create and free."""

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
    """The bytes of each storage; the weak reference keeps its address from being reused."""
    return {StorageWeakRef(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}


def _strided(items: Iterable[Any]) -> Iterator[Tensor]:
    """The plain, strided tensors that store the items."""
    return (part for item in items if isinstance(item, Tensor) for part in plain_parts(item) if part.layout is torch.strided)


def _held(tensor: Tensor) -> int:
    """The bytes in memory; an expanded tensor counts its storage once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())

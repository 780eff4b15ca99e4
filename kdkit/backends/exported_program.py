"""Programs of torch.export (`.pt2`): graphs that torch runs without the code of the model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kdkit.backends.tracing import FIXED_BATCH, NO_GRAPH, exportable, quiet_export, with_two_items
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.guards import explain_error
from kdkit.models.evaluation import device_of


def write_program(model: nn.Module, path: Path, example: Batch) -> None:
    """Write a model in eval mode as a program of torch.export, which takes batches of any size.

    The program keeps the dtypes and the device of the model, which is not changed.

    Args:
        example: a batch that the model can be called with.

    Raises:
        KdError: torch.export can't make a graph of forward, or only one for some batch sizes that forward takes.
        OSError: the path can't be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_program(nn.Linear(2, 1), Path(folder) / "net.pt2", Batch((torch.zeros(4, 2),)))
    ...     read_program(Path(folder) / "net.pt2")(torch.zeros(7, 2)).shape
    torch.Size([7, 1])
    """
    batch = with_two_items(Batch(example.args, example.kwargs).to(device_of(model)))
    with exportable(model, "keep"), quiet_export():
        try:
            program = torch.export.export(model, batch.args, batch.kwargs, dynamic_shapes=_open_batch(model, batch), strict=False)
        except Exception as error:  # the errors of torch.export have no common base class
            raise KdError(
                f"{type(model).__name__} can't be exported as a program: {explain_error(error, type(model).__module__)}",
                NO_GRAPH,
                "%tb shows where",
            ) from error
        for size in (1, 2 * batch.size):
            _check_size(model, program.module(), batch, size)
        torch.export.save(program, path)


def _open_batch(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """For each parameter of forward, which axes of its tensors may have any length."""
    given = inspect.signature(model.forward).bind(*batch.args, **batch.kwargs).arguments
    return tree_map(lambda value: {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None, dict(given))


def _check_size(model: nn.Module, program: Any, batch: Batch, size: int) -> None:
    """Refuse a program that does not take as many items as the model takes."""
    some = batch._map(lambda tensor: torch.cat([tensor] * -(-size // batch.size))[:size])
    try:
        some.call(model)
    except Exception:  # forward itself fixes the size
        raise KdError(f"{type(model).__name__} runs on {batch.size} items and not on {size}, so it can't be exported for any batch size", FIXED_BATCH) from None
    try:
        some.call(program)
    except Exception as error:  # guards of torch.export
        raise KdError(f"{type(model).__name__} can't be exported for any batch size: its graph does not take {size} items", FIXED_BATCH) from error


def read_program(path: Path) -> nn.Module:
    """The program in a file of one's own, as a module; torch reads it, with safeguards of its own alone."""
    return _Program(torch.export.load(path).module())


class _Program(nn.Module):
    """A module in eval mode alone: what `ExportedProgram.module()` gives refuses `eval()` and `train()`."""

    def __init__(self, graph: Any):
        super().__init__()
        self._graph = [graph]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._graph[0](*args, **kwargs)

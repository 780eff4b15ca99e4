"""Moments: what calibration batches show about the inputs or the outputs of layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import Batch
from kdkit.models import device_of, evaluating
from kdkit_decompose.forms import Form


class Moment:
    """The second moment E[v vᵀ] of vectors v (width,), summed over batches.

    >>> moment = Moment(2)
    >>> moment.add(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    >>> moment.mean
    tensor([[2., 0.],
            [0., 8.]], dtype=torch.float64)
    """

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        self.sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.rows = 0

    def add(self, vectors: Tensor) -> None:
        """Count more vectors (..., width)."""
        rows = vectors.detach().flatten(0, -2).float()
        self.sum += rows.T @ rows
        self.rows += len(rows)

    @property
    def mean(self) -> Tensor:
        """E[v vᵀ] (width, width), float64."""
        return self.sum / max(self.rows, 1)


class Observation:
    """The second moment of the inputs x of a layer, or of its outputs y = W x without the bias: whichever are narrower.

    For an error E of the matrix W (out, in), the mean of ‖E x‖² is ‖E C^½‖² with C = E[x xᵀ]. The best matrix of rank r is U Uᵀ W: the r
    columns of U are the first left singular vectors of W C^½, which are the first eigenvectors of E[y yᵀ] = W C Wᵀ.

    Args:
        layer: the layer to observe.
        form: how its weight is a matrix.

    >>> from kdkit_decompose.forms import LINEAR
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> layer.weight.data = torch.diag(torch.tensor([3.0, 1.0]))
    >>> seen = Observation(layer, LINEAR)
    >>> inputs = torch.tensor([[0.0, 9.0], [0.1, 0.0]])
    >>> seen.add(inputs, layer(inputs))
    >>> directions, values = seen.principal_directions(LINEAR.matrix(layer))    # the first input is nearly 0: the second one counts
    >>> directions[:, 0].abs().round().tolist()
    [0.0, 1.0]
    """

    DAMPING = 1e-3
    """Share of the mean eigenvalue of C that is added to all: directions that the batches did not show count a little."""

    def __init__(self, layer: nn.Module, form: Form):
        rows, columns = form.shape(layer)
        self.layer, self.form, self.of_outputs = layer, form, form.gives_product and rows < columns
        self.moment = Moment(rows if self.of_outputs else columns, layer.weight.device)  # type: ignore[arg-type]
        self.squares, self.numbers = 0.0, 0

    def add(self, inputs: Tensor, output: Tensor, mask: Tensor | None = None) -> None:
        """Count one call of the layer.

        Args:
            inputs: what the layer received.
            output: what it returned.
            mask: (batch, tokens), 0 for padding, which does not count.
        """
        columns = inputs.detach().float()
        vectors = self.form.product(self.layer, output.detach().float()) if self.of_outputs else self.form.columns(self.layer, columns)
        if mask is not None and vectors.shape[:-1] == mask.shape:
            vectors, columns = vectors[mask.bool()], columns[mask.bool()]
        self.moment.add(vectors)
        self.squares += float(columns.square().sum())
        self.numbers += columns.numel()

    @property
    def problem(self) -> str:
        """Why it can't be used; empty if it can."""
        if not self.moment.rows:
            return "no calibration batch reached it"
        return "" if self.moment.sum.isfinite().all() else "it receives values that are not finite from calibration batches"

    def principal_directions(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The left singular vectors (out, rank) of W C^½, and its singular values (rank,), descending; both float32."""
        weight = weight.double()
        if self.of_outputs:
            squares, vectors = torch.linalg.eigh(self.moment.mean + self._damping * weight @ weight.T)
            return vectors.flip(1).float(), squares.flip(0).clamp(min=0).sqrt().float()
        vectors, spread = self._axes()
        left, values, _ = torch.linalg.svd((weight @ (vectors * spread)).float(), full_matrices=False)
        return left, values

    def roots(self) -> tuple[Tensor, Tensor]:
        """C^½ and C^-½, each (in, in) float32; only of inputs."""
        vectors, spread = self._axes()
        return (vectors * spread @ vectors.T).float(), (vectors / spread @ vectors.T).float()

    def _axes(self) -> tuple[Tensor, Tensor]:
        """The eigenvectors of C, and the roots of its eigenvalues."""
        squares, vectors = torch.linalg.eigh(self.moment.mean)
        return vectors, (squares.clamp(min=0) + self._damping).clamp(min=1e-12).sqrt()

    @property
    def _damping(self) -> float:
        return self.DAMPING * self.squares / max(self.numbers, 1)


def observe_layers(model: nn.Module, layers: Mapping[str, tuple[nn.Module, Form]], batches: Iterable[Batch]) -> dict[str, Observation]:
    """What the batches show about `layers`, by name. Batches stream once."""
    seen = {name: Observation(layer, form) for name, (layer, form) in layers.items()}
    by_layer = {observation.layer: observation for observation in seen.values()}
    run_watched(model, list(by_layer), lambda layer, *call: by_layer[layer].add(*call), batches)
    return seen


def run_watched(model: nn.Module, layers: Iterable[nn.Module], watch: Callable[[nn.Module, Tensor, Tensor, Tensor | None], None], batches: Iterable[Batch]) -> None:
    """Run the batches in eval mode, and call `watch(layer, inputs, output, attention_mask)` after each call of one of the layers."""
    mask: Tensor | None = None

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        watch(module, args[0], output, mask)

    with evaluating(model), _hooks(layer.register_forward_hook(hook) for layer in layers):
        for batch in batches:
            batch = batch.to(device_of(model))
            mask = batch.kwargs.get("attention_mask")
            batch.call(model)


@contextlib.contextmanager
def _hooks(handles: Iterable[Any]) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

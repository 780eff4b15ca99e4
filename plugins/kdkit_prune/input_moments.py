"""Input moments: what the inputs of layers are like on calibration data, as sums of squares or as Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack

from torch import Tensor, nn
from torch.nn import functional as F

from kdkit import Batch, KdError
from kdkit.models import device_of, evaluating, linear_kinds
from kdkit_prune.weight_matrices import WeightMatrix

CHUNK = 2**24
"""Numbers of an unfolded input that are held at a time."""

GRAMS = 2**27
"""Numbers of all Gram matrices that are held at a time; more layers take further passes over the data."""

Sum = Callable[[Tensor], Tensor]
"""From the inputs (groups, positions, inputs) of a layer to what is summed up."""


def squares(inputs: Tensor) -> Tensor:
    """Σ x² of each input: (groups, positions, inputs) -> (groups, inputs)."""
    return inputs.double().pow(2).sum(1)


def gram(inputs: Tensor) -> Tensor:
    """Σ x xᵀ: (groups, positions, inputs) -> (groups, inputs, inputs)."""
    return inputs.transpose(1, 2) @ inputs


def obstacle(layer: nn.Module) -> str:
    """Why the inputs of a layer can't be observed as rows of its matrix; empty if they can."""
    if isinstance(layer, (*linear_kinds(), nn.Conv1d, nn.Conv2d)):
        return ""
    return f"the inputs of {type(layer).__name__} are not observed (--method magnitude needs none)"


def sum_over_inputs(model: nn.Module, weights: Sequence[WeightMatrix], batches: Iterable[Batch], quantity: Sum) -> dict[str, Tensor]:
    """The mean over positions and items of a quantity of each layer's inputs, by the weight's name; layers without inputs are left out.

    Padding, where `attention_mask` is 0, does not count.

    Raises:
        KdError: there were no batches, or an input is not finite.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys((weight.name for weight in weights), 0)
    padding: Tensor | None = None

    def watch(weight: WeightMatrix) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            for rows in input_rows(layer, _without_padding(args[0].detach(), padding)):
                found = quantity(rows.float())
                sums[weight.name] = sums[weight.name] + found if weight.name in sums else found
                counts[weight.name] += rows.shape[1]

        return hook

    device, done = device_of(model), 0
    with evaluating(model), ExitStack() as hooks:
        for weight in weights:
            hooks.callback(weight.layer.register_forward_pre_hook(watch(weight)).remove)
        for batch in batches:
            padding = batch.kwargs.get("attention_mask")
            batch.to(device).call(model)
            done += 1
    if not done:
        raise KdError("prune weights got no calibration batch", "%kd set --calibration {batches}; labels are not needed")
    for name, total in sums.items():
        if not bool(total.isfinite().all()):
            raise KdError(f"prune weights: the inputs of {name} hold infinities or NaN on the calibration data", "check the calibration batches, and the model, first")
    return {name: (total / counts[name]).float() for name, total in sums.items()}


def passes(weights: Sequence[WeightMatrix], limit: int = GRAMS) -> Iterator[list[WeightMatrix]]:
    """The weights in order, in parts whose Gram matrices fit in `limit` numbers together."""
    part: list[WeightMatrix] = []
    held = 0
    for weight in weights:
        needed = weight.rows.shape[1] ** 2 * groups_of(weight.layer)
        if part and held + needed > limit:
            yield part
            part, held = [], 0
        part.append(weight)
        held += needed
    if part:
        yield part


def groups_of(layer: nn.Module) -> int:
    """In how many groups of channels a layer works."""
    return int(getattr(layer, "groups", 1)) if isinstance(layer, nn.modules.conv._ConvNd) else 1


def input_rows(layer: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """A layer's inputs as (groups, positions, inputs), in the order of its matrix's columns, in parts of limited size.

    >>> import torch
    >>> next(input_rows(nn.Conv2d(4, 8, 3, padding=1), torch.zeros(2, 4, 5, 5))).shape
    torch.Size([1, 50, 36])
    """
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        yield inputs.reshape(1, -1, inputs.shape[-1])
        return
    if inputs.dim() == len(layer.kernel_size) + 1:
        inputs = inputs[None]
    per_item = inputs[0].numel() * layer.weight[0, 0].numel()
    for part in inputs.split(max(1, CHUNK // max(per_item, 1))):
        yield _unfold(layer, part)


def _unfold(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    flat = isinstance(layer, nn.Conv1d)
    patches = F.unfold(
        padded[:, :, None] if flat else padded,
        (1, *layer.kernel_size) if flat else layer.kernel_size,
        (1, *layer.dilation) if flat else layer.dilation,
        0,
        (1, *layer.stride) if flat else layer.stride,
    )
    items, _, places = patches.shape
    by_channel = patches.reshape(items, layer.groups, layer.in_channels // layer.groups, -1, places)
    return by_channel.permute(1, 0, 4, 3, 2).reshape(layer.groups, items * places, -1)


def _without_padding(inputs: Tensor, padding: Tensor | None) -> Tensor:
    if padding is None or padding.dim() != 2 or inputs.shape[:-1] != padding.shape:
        return inputs
    return inputs[padding.to(inputs.device).bool()]

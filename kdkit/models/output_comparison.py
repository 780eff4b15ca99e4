"""Output comparison: whether two forms of a model give the same outputs, up to the rounding of their dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.models.evaluation import evaluating_without_side_effects
from kdkit.models.packed_tensors import plain_parts
from kdkit.models.traits import Trait, traits_of

_SMALL = 1e-4
"""Outputs below this magnitude are compared by absolute difference."""


_PACKED = {torch.int8: 2.0**-7, torch.uint8: 2.0**-3}
"""The ε of packed weights: 8 bits with a sign, and bytes that hold two weights of 4 bits."""


def rounding_tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """How far outputs may differ by rounding, relative to the largest one: √ε of the coarsest dtype, half of its significant digits.

    Merges and exports of the tests' models (a perceptron, a CNN, a BERT, an LSTM) differ by up to 5e-7 in float32, 1.2e-3 in float16 and
    9.3e-3 in bfloat16; √ε leaves a factor of 9 and more for deeper models.

    >>> f"{rounding_tolerance([torch.float32]):.1e}, {rounding_tolerance([torch.float32, torch.float16]):.1e}"
    '3.5e-04, 3.1e-02'
    """
    known = [_PACKED.get(dtype) or torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point or dtype in _PACKED]
    return max(known, default=torch.finfo(torch.float32).eps) ** 0.5


def output_tensors(output: Any, path: str = "output") -> Iterator[tuple[str, Tensor]]:
    """The tensors of an output with the keys that lead to them; caches and other values are left out.

    >>> [path for path, _ in output_tensors({"logits": torch.zeros(1), "boxes": [torch.zeros(1)], "names": "a"})]
    ['output.logits', 'output.boxes.0']
    """
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, item in output.items():
            yield from output_tensors(item, f"{path}.{key}")
    elif isinstance(output, tuple | list):
        for index, item in enumerate(output):
            yield from output_tensors(item, f"{path}.{index}")
    elif is_dataclass(output) and not isinstance(output, type):
        for item in fields(output):
            yield from output_tensors(getattr(output, item.name), f"{path}.{item.name}")


def relative_difference(want: Tensor, got: Tensor) -> float:
    """The largest difference of two tensors as a share of the largest finite magnitude of `want`.

    Infinite if the shapes or the places of values that are not finite differ. Integers: the share that differs.

    >>> relative_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0]))
    0.25
    """
    if want.shape != got.shape:
        return float("inf")
    if not want.numel():
        return 0.0
    if not want.is_floating_point() and not want.is_complex():
        return float((want.cpu() != got.cpu()).double().mean())
    want, got = (tensor.detach().cpu().to(torch.complex128 if want.is_complex() else torch.float64) for tensor in (want, got))
    finite = want.isfinite()
    if not torch.equal(finite, got.isfinite()) or not torch.equal(want[~finite].nan_to_num(), got[~finite].nan_to_num()):
        return float("inf")
    want, got = want[finite], got[finite]
    return float((want - got).abs().max() / want.abs().max().clamp_min(_SMALL)) if want.numel() else 0.0


def find_difference(model: nn.Module, other: nn.Module, batch: Batch) -> str:
    """What differs between the outputs of two models for a batch by more than rounding, as a clause; empty if nothing does.

    A model whose outputs change from call to call is not compared.

    Raises:
        Exception: what the second model raises; if the first one can't be called, nothing is compared.

    >>> net = nn.Linear(2, 2)
    >>> find_difference(net, net, Batch((torch.ones(1, 2),)))
    ''
    """
    try:
        expected = _outputs(model, batch)
    except Exception:  # this batch does not fit the model, so there is nothing to compare
        return ""
    found = _outputs(other, batch)
    tolerance = rounding_tolerance(
        [*computed_dtypes(model), *computed_dtypes(other), *(each.dtype for each in (*expected.values(), *found.values()) if each.is_floating_point())]
    )
    fault = _first_difference(expected, found, tolerance)
    return "" if fault and _first_difference(expected, _outputs(model, batch), tolerance) else fault


def _first_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float) -> str:
    for path, want in expected.items():
        if path not in found:
            return f"{path} is missing"
        if want.shape != found[path].shape:
            return f"{path} has shape {tuple(found[path].shape)} instead of {tuple(want.shape)}"
        off = relative_difference(want, found[path])
        if want.is_floating_point() or want.is_complex():
            if off > tolerance:
                return f"{path} differs by {off:.2g} of its largest value; rounding explains {tolerance:.0e}"
        elif off > _TIES:
            return f"{off:.0%} of {path} differ"
    return ""


_TIES = 0.01
"""The share of integer outputs, such as labels, that rounding may change where two scores are nearly equal."""


def _outputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    weight = next(model.parameters(), None)
    with evaluating_without_side_effects(model):
        return dict(output_tensors((batch if weight is None else batch.to(weight.device)).call(model)))


def computed_dtypes(model: nn.Module) -> set[torch.dtype]:
    """The dtypes of weights and buffers that decide how far outputs are rounded; those of packed weights only if there are any."""
    traits = traits_of(model)
    if Trait.ONNX in traits:  # a graph computes in float32
        return {torch.float32}
    found = {part.dtype for tensor in (*model.parameters(), *model.buffers()) for part in plain_parts(tensor)}
    return found if Trait.PACKED_WEIGHTS in traits else found - _PACKED.keys()

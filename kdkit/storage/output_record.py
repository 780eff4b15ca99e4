"""A record of a model's outputs, kept with the saved model: loading compares, so that a skeleton whose code has changed is noticed.

The record holds no data of the user. Its inputs are made again from a seed, in the shapes, dtypes and ranges of the session's example.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, TypeAdapter, model_validator
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import brief
from kdkit.guards import explain_error
from kdkit.guards.fused_kernels import without_kernels
from kdkit.models.evaluation import device_of, evaluating_without_side_effects
from kdkit.models.output_comparison import computed_dtypes, output_tensors, rounding_tolerance
from kdkit.models.traits import Trait, traits_of
from kdkit.parameters.schema import OpenRecord, read_as
from kdkit.storage.call_limit import CallTooLarge, limit_call
from kdkit.storage.layout import AGAIN
from kdkit.storage.value_records import DtypeName

ITEMS, VALUES = 2, 64
"""Items in a recorded call, and recorded numbers of each output."""
AXIS, ELEMENTS = 4096, 2**20
"""The longest axis of an input, and the most elements of all inputs; larger inputs are not recorded."""
SHARE = 0.25
"""The same code on another machine rounds less differently than two forms of a model, for which `rounding_tolerance` is made."""
PACKED_ROUNDING = 5e-2
"""How far outputs may differ with 8-bit weights, relative to the largest value: a last bit may carry an activation over to the next step."""


def _check_call(shape: list[int]) -> list[int]:
    if math.prod(shape) > ELEMENTS or max(shape, default=0) > AXIS:
        raise ValueError("a recorded input is smaller")
    return shape


INPUTS = 64
"""The most inputs of a call."""


class _Input(OpenRecord):
    shape: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(_check_call)]
    dtype: DtypeName
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]


class _Output(OpenRecord):
    shape: list[Annotated[int, Field(ge=0)]]
    largest: Annotated[float, Field(allow_inf_nan=False)]
    values: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=VALUES)]


class OutputRecord(OpenRecord):
    """The inputs by position and by name, and the outputs."""

    args: Annotated[list[_Input | bool | int | float | None], Field(max_length=INPUTS)]
    kwargs: Annotated[dict[Annotated[str, Field(pattern=r"^\w+$")], _Input | bool | int | float | None], Field(max_length=INPUTS)]
    outputs: list[_Output]

    @model_validator(mode="after")
    def _check_together(self) -> OutputRecord:
        if sum(math.prod(each.shape) for each in (*self.args, *self.kwargs.values()) if isinstance(each, _Input)) > ELEMENTS:
            raise ValueError("the recorded inputs are smaller together")
        return self


_RECORD = TypeAdapter(OutputRecord)


def record_outputs(model: nn.Module, example: Batch) -> dict[str, Any] | None:
    """The outputs of a model for inputs like the example's, as plain data.

    Returns:
        None for a model whose outputs can't be recorded: it takes other than tensors and numbers or very large inputs, can't be called with
        other values, gives no float tensors, or gives others the second time.

    >>> record = record_outputs(nn.Linear(3, 2), Batch((torch.randn(8, 3),)))
    >>> record["args"][0]["shape"], record["outputs"][0]["shape"]
    ([2, 3], [2, 2])
    """
    some = example[:ITEMS]
    args, kwargs = [_describe(value) for value in some.args], {key: _describe(value) for key, value in some.kwargs.items()}
    data = {"args": args, "kwargs": kwargs, "outputs": []}
    try:
        record = read_as(_RECORD, data, "the example")
        first, second = _outputs(model, record), _outputs(model, record)
    except Exception:  # forward is the user's code, and may refuse numbers that are not data, such as lengths that are not sorted
        return None
    steady = all(torch.equal(one, other) and bool(torch.isfinite(one).all()) for one, other in zip(first, second, strict=True))
    if not first or not steady:
        return None
    return data | {"outputs": [{"shape": list(each.shape), "largest": float(each.abs().max()) if each.numel() else 0.0, "values": _sample(each)} for each in first]}


def compare_outputs(model: nn.Module, data: Any, place: str) -> str:
    """A sentence on how the outputs of a loaded model differ from the recorded ones; empty if they don't.

    Raises:
        KdError: the record has no form that `record_outputs` writes.
    """
    record = read_as(_RECORD, data, place, AGAIN)
    what = "its outputs differ from those of the saved model"
    why = "the code of its class, or a package, is another one than when it was saved"
    try:
        with limit_call(model):
            found = _outputs(model, record)
    except CallTooLarge as error:
        return f"its outputs were not compared with those of the saved model: {error}"
    except Exception as error:  # forward is the user's code, which may be another one than when the model was saved
        return f"{what}: it can't be called with the recorded inputs ({explain_error(error, type(model).__module__)}); {why}"
    shapes, expected = [list(each.shape) for each in found], [each.shape for each in record.outputs]
    if shapes != expected:
        return f"{what}: shapes {brief(shapes)}, and {brief(expected)} before; {why}"
    rounding = _rounding(model, found)
    for output, old in zip(found, record.outputs, strict=True):
        pairs = zip(_sample(output), old.values, strict=False)
        distance = max((abs(one - other) if math.isfinite(one) else math.inf for one, other in pairs), default=0.0)
        if distance > rounding * old.largest:
            return f"{what} by up to {distance:.2g} (largest value {old.largest:.2g}); {why}"
    return ""


def _describe(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    numbers = value.detach().double() if value.numel() else torch.zeros(1)
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "low": float(numbers.min()), "high": float(numbers.max())}


def _make(source: Any, generator: torch.Generator) -> Any:
    if not isinstance(source, _Input):
        return source
    dtype, low, high = getattr(torch, source.dtype), source.low, max(source.low, source.high)
    if dtype.is_floating_point or dtype.is_complex:
        return (torch.rand(source.shape, generator=generator) * (high - low) + low).to(dtype)
    if {low, high} <= {0.0, 1.0}:  # a mask, in which an item without any element would mean nothing
        return torch.full(source.shape, high).to(dtype)
    return torch.randint(int(low), int(high) + 1, source.shape, generator=generator).to(dtype)


def _outputs(model: nn.Module, record: OutputRecord) -> list[Tensor]:
    """The float tensors in the output of the recorded call."""
    generator = torch.Generator().manual_seed(0)
    args = tuple(_make(source, generator) for source in record.args)
    batch = Batch(args, {name: _make(source, generator) for name, source in record.kwargs.items()})
    # a transformer layer of torch is one operation with its fast path, and its memory and time could not be limited
    with evaluating_without_side_effects(model), without_kernels("mha fastpath"):
        found = batch.to(device_of(model)).call(model)
        return [tensor.detach().cpu() for _, tensor in output_tensors(found) if tensor.is_floating_point()]


def _sample(output: Tensor) -> list[float]:
    flat = output.flatten()
    return flat[torch.linspace(0, max(len(flat) - 1, 0), min(VALUES, len(flat))).long()].double().tolist()


def _rounding(model: nn.Module, outputs: list[Tensor]) -> float:
    if Trait.PACKED_WEIGHTS in traits_of(model):
        return PACKED_ROUNDING
    return SHARE * rounding_tolerance([*computed_dtypes(model), *(tensor.dtype for tensor in outputs)])

"""Weight-only quantization: integers of 8, 4, 3 or 2 bits in groups; activations stay in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from kdkit import Batch, Context, Forecast, KdError, Needs, param
from kdkit.display import Cell, Table
from kdkit.measurement import size_bytes
from kdkit.models import device_of, evaluating, select_layers
from kdkit_quantize.bit_allocation import allocate_bits
from kdkit_quantize.gptq import round_with_compensation
from kdkit_quantize.group_quantization import METHODS, GroupCode, dequantize
from kdkit_quantize.input_moments import has_input_columns, input_moments
from kdkit_quantize.packed_layers import is_transposed
from kdkit_quantize.packing_stage import PackingStage, weight_of

WIDTHS = (2, 3, 4, 8)
"""Bits that a weight can have."""
MOMENTS_BYTES = 2**28
"""Memory for the second moments that are observed in one pass over the data."""


class Weights(PackingStage):
    """Hold weights in 8, 4, 3 or 2 bits, packed in memory and on disk; activations stay in float.

    A row of weights is cut into groups, each with a scale and a zero point: w ≈ (code - zero) · scale. `rtn` rounds to the nearest level.
    `hqq` fits the zero points to a sparse error (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023).
    `gptq` makes up for the error of a column in the columns to come, on calibration data (Frantar et al., "GPTQ", 2022, arXiv:2210.17323).
    `--average-bits` gives more bits to layers whose rounding disturbs the output more. Biases, norms and recurrent layers stay in float, and
    tied weights stay tied.
    """

    id: ClassVar = "quantize.weights"
    known_as: ClassVar[tuple[str, ...]] = ("weight-only quantization", "HQQ", "RTN", "GPTQ", "mixed precision")
    sample_options: ClassVar = "--bits 4 --method hqq"

    bits: Literal[8, 4, 3, 2] = param(8, "of a weight", search=(8, 4, 3, 2), main=True)
    group: int = param(64, "weights that share a scale and a zero point; a row with fewer weights is one group", ge=8, le=1024)
    method: Literal["rtn", "hqq", "gptq"] = param("rtn", "how the codes are chosen; gptq needs calibration data", search=("rtn", "hqq", "gptq"), main=True)
    layer_bits: dict[str, int] = param({}, "bits of the layers that a pattern selects, such as head=8; the last match counts", names="layers", ge=2, le=8)
    average_bits: float | None = param(None, "bits a weight on average: each layer gets 2, 3, 4 or 8 by how much it disturbs the output", ge=2, le=8)
    batches: int = param(8, "calibration batches, for --method gptq and --average-bits", ge=1)

    @pydantic.model_validator(mode="after")
    def _widths(self) -> Weights:
        odd = [f"{pattern}={bits}" for pattern, bits in self.layer_bits.items() if bits not in WIDTHS]
        if odd:
            raise ValueError(f"--layer-bits {' '.join(odd)}: a weight can have 2, 3, 4 or 8 bits")
        return self

    def required_inputs(self) -> Needs:
        return self.needs | Needs(calibration=self.method == "gptq" or self.average_bits is not None)

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Patterns that select nothing, and budgets that the layers with bits of their own exceed."""
        yield from super().check(model, context)
        chosen, _ = self.chosen(model)
        for pattern in self.layer_bits:
            if not set(select_layers(model, [pattern])) & set(chosen):
                yield f"quantize weights: --layer-bits {pattern}: selects no layer that is packed"
        if self.average_bits is not None and self._budget(chosen, self._named_bits(model, chosen)) < min(WIDTHS):
            yield f"quantize weights: --average-bits {self.average_bits} is less than --layer-bits alone takes with 2 bits for all other layers"

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """The structure, with codes that need no data; the layers get the bits nearest to the average."""
        plain = {} if self.average_bits is None else {"average_bits": None, "bits": min(WIDTHS, key=lambda bits: abs(bits - (self.average_bits or 0)))}
        quiet = self.model_copy(update=plain | {"method": "rtn" if self.method == "gptq" else self.method})
        made = quiet.apply(model, context)
        if self.average_bits is None:
            return Forecast(made)
        weights = sum(module.kdkit_encoded["codes"] for module in made.modules() if hasattr(module, "kdkit_encoded"))
        return Forecast(made, size_bytes=size_bytes(made) + round(weights * (self.average_bits - quiet.bits) / 8))

    def layer_widths(self, model: nn.Module, chosen: Mapping[str, nn.Module], context: Context) -> dict[str, int]:
        named, owners = self._named_bits(model, chosen), _owners(chosen)
        if self.average_bits is None:
            widths = dict.fromkeys(chosen, int(self.bits)) | named
            return {name: widths[owner] for name, owner in owners.items()}
        free = {name: layer for name, layer in chosen.items() if owners[name] == name and name not in named}
        errors = self._output_errors(model, free, context)
        sizes = {name: weight_of(layer).numel() for name, layer in free.items()}
        widths = allocate_bits(sizes, errors, self._budget(chosen, named)) | named
        _show({name: chosen[name] for name in chosen if owners[name] == name}, widths, errors, context)
        return {name: widths[owner] for name, owner in owners.items()}

    def rounds(self, model: nn.Module, chosen: Mapping[str, nn.Module], context: Context) -> Iterator[tuple[dict[str, nn.Module], dict[str, Tensor]]]:
        if self.method != "gptq":
            yield from super().rounds(model, chosen, context)
            return
        if alone := [name for name, layer in chosen.items() if not has_input_columns(layer)]:
            context.note(f"rounded to nearest, since gptq works on linear layers and convolutions of one group: {', '.join(alone)}")
        for part in _parts(chosen):
            watched = {name: layer for name, layer in part.items() if has_input_columns(layer)}
            moments = input_moments(model, watched, context.calibration(self.batches)) if watched else {}
            if unreached := [name for name in watched if name not in moments]:
                context.note(f"rounded to nearest, since no calibration batch reached them: {', '.join(unreached)}")
            if broken := [name for name, moment in moments.items() if not torch.isfinite(moment).all()]:
                raise KdError(
                    f"quantize weights: the inputs of {', '.join(broken[:4])} are not finite on the calibration data",
                    "look for nan and inf in it",
                    "--method hqq needs no data",
                )
            yield part, moments

    def code(self, weight: Tensor, bits: int, moment: Tensor | None = None) -> GroupCode:
        group = min(self.group, weight.shape[1])
        if moment is not None:
            return round_with_compensation(weight, bits, group, moment)
        return METHODS["rtn" if self.method == "gptq" else self.method](weight, bits, group)

    def _named_bits(self, model: nn.Module, chosen: Mapping[str, nn.Module]) -> dict[str, int]:
        """The bits that the user chose for single layers."""
        named = {name: bits for pattern, bits in self.layer_bits.items() for name in select_layers(model, [pattern])}
        return {name: bits for name, bits in named.items() if name in chosen}

    def _budget(self, chosen: Mapping[str, nn.Module], named: Mapping[str, int]) -> float:
        """The average bits of the layers that have none of their own."""
        sizes = {name: weight_of(chosen[name]).numel() for name, owner in _owners(chosen).items() if name == owner}
        free = sum(size for name, size in sizes.items() if name not in named)
        spent = sum(sizes[name] * bits for name, bits in named.items() if name in sizes)
        return ((self.average_bits or 0) * sum(sizes.values()) - spent) / free if free else math.inf

    def _output_errors(self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context) -> dict[str, dict[int, float]]:
        """For each layer and each number of bits: the noise at the model's output over the power of the signal, with that layer alone rounded."""
        batches = [Batch(batch.args, batch.kwargs).to(device_of(model)) for batch in context.calibration(self.batches)]
        errors: dict[str, dict[int, float]] = {}
        with evaluating(model), torch.no_grad():
            expected = [context.task.prediction(batch.call(model), batch).double() for batch in batches]
            power = sum(float(output.square().sum()) for output in expected) or 1.0
            for done, (name, layer) in enumerate(layers.items()):
                weight, kept, turned = layer.get_parameter("weight"), layer.get_parameter("weight").data, is_transposed(layer)
                rows = weight_of(layer)
                try:
                    errors[name] = {}
                    for bits in WIDTHS:
                        context.progress(done, len(layers), f"{name} in {bits} bits")
                        matrix = dequantize(self.code(rows.flatten(1), bits), rows.dtype).reshape(rows.shape)
                        weight.data = matrix.T if turned else matrix
                        found = (context.task.prediction(batch.call(model), batch).double() for batch in batches)
                        errors[name][bits] = sum(float((one - other).square().sum()) for one, other in zip(found, expected, strict=True)) / power
                finally:
                    weight.data = kept
        return errors


def _owners(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """For each layer the first one with the same weight: itself, except for tied layers."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(layer._parameters["weight"]), name) for name, layer in layers.items()}


def _parts(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """The layers in order, in parts whose moments fit in memory."""
    part: dict[str, nn.Module] = {}
    taken = 0
    for name, layer in layers.items():
        size = 4 * weight_of(layer).flatten(1).shape[1] ** 2
        if part and taken + size > MOMENTS_BYTES:
            yield part
            part, taken = {}, 0
        part[name] = layer
        taken += size
    if part:
        yield part


def _show(chosen: Mapping[str, nn.Module], widths: Mapping[str, int], errors: Mapping[str, Mapping[int, float]], context: Context) -> None:
    """Attach the table of layers: weights, bits, and the output's signal to noise ratio with that layer alone rounded."""
    sizes = {name: weight_of(layer).numel() for name, layer in chosen.items()}
    rows = []
    for name, size in sizes.items():
        error = errors.get(name, {}).get(widths[name])
        rows.append([name or "the model", Cell(f"{size:,}"), widths[name], f"{-10 * math.log10(error):.1f} dB" if error else "-"])
    context.attach(Table(["layer", "weights", "bits", "output SQNR"], rows))
    average = sum(sizes[name] * widths[name] for name in sizes) / sum(sizes.values())
    counts = {bits: sum(width == bits for width in widths.values()) for bits in WIDTHS}
    context.note(f"{average:.2f} bits a weight: " + ", ".join(f"{count} {'layers' if count > 1 else 'layer'} in {bits}" for bits, count in counts.items() if count))

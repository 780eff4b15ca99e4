"""Export a torch model to ONNX, clean the graph up, and check it against torch on more batches than the example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kdkit.backends.onnx.axes import Axes, image_axes, open_axes, resized
from kdkit.backends.onnx.graph import fix_axes, name_by_module, rename_tensors, tidy
from kdkit.backends.onnx.model import OnnxModel
from kdkit.backends.onnx.signature import Signature, describe_output, name_outputs
from kdkit.backends.tracing import FIXED_BATCH, NO_GRAPH, exportable, quiet_export, with_two_items
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.guards import explain_error
from kdkit.guards.stopwatch import timed
from kdkit.models.copies import private_copy
from kdkit.models.export_forms import has_export_forms, in_export_forms
from kdkit.models.output_comparison import relative_difference, rounding_tolerance

if TYPE_CHECKING:
    from onnx import ModelProto

LARGEST = 2 * 1024**3
"""The largest ONNX file in bytes: protobuf sizes are signed 32-bit numbers."""


class _Flat(nn.Module):
    """A wrapper whose inputs and outputs are only tensors."""

    def __init__(self, model: nn.Module, signature: Signature, batch: Batch):
        super().__init__()
        self.model = model
        self._signature, self._by_position = signature, len(batch.args)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self._signature.inputs, tensors, strict=True)) | dict(self._signature.constants)
        args = [given.pop(name) for name in self._signature.parameters[: self._by_position]]
        return tuple(describe_output(self.model(*args, **given))[1])


@timed("export")
def to_onnx(
    model: nn.Module, example: Batch, attention: Literal["eager", "keep"] = "eager", opset: int | None = None, report: Report = lambda done, text: None
) -> OnnxModel:
    """Export a model, in eval mode and in float32, with batch and token axes of any size where the model allows it.

    The graph's inputs have the names of forward's parameters, its outputs the names that the model gives them. Images keep the size of the
    example, and so does an axis that the graph can't leave open, such as one that forward loops over; `signature.fixed` states them.

    Args:
        model: any nn.Module; it is not changed.
        example: a batch that the model can be called with; the graph is checked on it and on variants of it.
        attention: "eager" exports HF transformers with plain attention, which is faster in 8 bits; "keep" exports it as configured.
        opset: ONNX operator set; default: the exporter's.
        report: is called with (the share done, the phase) before each phase.

    Raises:
        KdError: the model can't be exported or is larger than 2 GB, or the graph's outputs differ from torch's.
    """
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if held >= LARGEST:
        raise KdError(f"the model has {held / 1024**3:.1f} GB of weights, and an ONNX file can hold at most 2 GB", "export a smaller version of it")
    report(0.0, "preparing")
    example = with_two_items(Batch(example.args, example.kwargs).to("cpu"))
    plain = _plain(model)
    if plain is not model:
        example = example._map(lambda tensor: tensor.float() if tensor.dtype in _HALF else tensor)
    with exportable(plain, attention):
        sample = example[:3] if example.size != 3 else example[:2]
        output = _call(plain, example)
        signature = Signature.of(plain, example, output)
        _refuse_growing(plain, output, _call(plain, sample, f"the model runs on {example.size} items and not on {sample.size}", FIXED_BATCH))
        groups = open_axes(plain, signature, sample)
        report(0.1, "tracing forward into a graph")
        graph = _traced(plain, signature, sample, name_outputs(output), opset, frozenset().union(*groups))
        report(0.8, "checking the graph against torch")
        exported = _wrap(graph, signature)
        for batch in _variants(example):
            _check(plain, exported, batch)
        return _with_fixed_axes(plain, exported, example, groups, image_axes(plain, signature, sample))


Report = Callable[[float, str], None]
"""Receives the share done and the phase."""

_HALF = (torch.float16, torch.bfloat16)


def _call(model: nn.Module, batch: Batch, problem: str = "the model can't be called with the example batch", hint: str = "") -> Any:
    try:
        return batch.call(model)
    except Exception as error:  # a user's forward may raise anything
        raise KdError(f"{type(model).__name__} can't be exported to ONNX: {problem}: {explain_error(error, type(model).__module__)}", hint) from error


def _refuse_growing(model: nn.Module, output: Any, other: Any) -> None:
    """Refuse a model that returns more outputs for more items, as detectors do that return the detections of each item."""
    if isinstance(output, list | tuple) and isinstance(other, list | tuple) and len(output) != len(other):
        raise KdError(
            f"{type(model).__name__} can't be exported to ONNX: it returns a list with an entry for each item, and a graph has a fixed number of outputs",
            "export the part that returns tensors of all items, and select the detections outside of it",
            "of torchvision's one-stage detectors, as a module: def forward(self, x): return self.net.head(list(self.net.backbone(x).values()))",
        )


def _plain(model: nn.Module) -> nn.Module:
    """The model itself if it is on the CPU in full precision, otherwise a float32 copy on the CPU, with the modules replaced that are exported in another form."""
    tensors = [*model.parameters(), *model.buffers()]
    packed = has_export_forms(model)
    if not packed and all(tensor.device.type == "cpu" and tensor.dtype not in _HALF for tensor in tensors):
        return model
    plain = private_copy(model).cpu().float()
    return in_export_forms(plain) if packed else plain


def _traced(model: nn.Module, signature: Signature, batch: Batch, outputs: list[str], opset: int | None, axes: Axes) -> ModelProto:
    """The graph with those axes open besides the batch; with the batch alone if they keep the model from being exported."""
    try:
        return _export(model, signature, batch, outputs, opset, axes)
    except KdError:
        if not axes:
            raise
        return _export(model, signature, batch, outputs, opset, frozenset())


def _export(model: nn.Module, signature: Signature, batch: Batch, outputs: list[str], opset: int | None, axes: Axes) -> ModelProto:
    tensors = signature.tensors(batch)
    auto = torch.export.Dim.AUTO
    dynamic = tuple({axis: auto for axis in range(tensor.dim()) if not axis or (name, axis) in axes} for name, tensor in tensors.items())
    # the exporter names its own values after operators and parameters; names of the user could be among them
    inputs, results = [f"kdkit_input_{index}" for index in range(len(tensors))], [f"kdkit_output_{index}" for index in range(len(outputs))]
    with quiet_export():
        try:
            program = torch.onnx.export(
                _Flat(model, signature, batch).eval(),
                tuple(tensors.values()),
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=inputs,
                output_names=results,
                dynamic_shapes=(dynamic,),
                opset_version=opset,
            )
        except Exception as error:  # the errors of the exporter and of torch.export have no common base class
            raise _unexportable(model, error) from error
    assert program is not None
    graph = program.model_proto
    name_by_module(graph, dict(model.named_modules()).keys() - {""}, "model.")
    tidy(graph)
    rename_tensors(graph, dict(zip((*inputs, *results), (*signature.inputs, *_apart(outputs, signature.inputs)), strict=True)))
    return graph


def _apart(outputs: list[str], inputs: Collection[str]) -> Iterator[str]:
    """The names of the outputs; one that an input has gets an ending."""
    taken = {*inputs, *outputs}
    for name in outputs:
        if name in inputs:
            while name in taken:
                name += "_output"
            taken.add(name)
        yield name


def _unexportable(model: nn.Module, error: BaseException) -> KdError:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return KdError(
        f"{type(model).__name__} can't be exported to ONNX: {explain_error(cause, type(model).__module__)}",
        NO_GRAPH,
        "%tb shows where",
    )


def _wrap(graph: ModelProto, signature: Signature) -> OnnxModel:
    """The graph as a model, without the inputs that it does not read.

    Raises:
        KdError: the graph takes only one batch size.
    """
    read = {name for node in graph.graph.node for name in node.input} | {item.name for item in graph.graph.output}
    kept = [item for item in graph.graph.input if item.name in read]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    for item in kept:
        first = item.type.tensor_type.shape.dim[:1]
        if first and not first[0].dim_param:
            raise KdError(
                f"the model works only on batches of {first[0].dim_value} (input {item.name}), so it can't be exported for any batch size",
                FIXED_BATCH,
            )
    names = tuple(item.name for item in kept)
    unused = tuple(name for name in signature.inputs if name not in names)
    return OnnxModel(graph.SerializeToString(), replace(signature, inputs=names, unused=unused))


def _variants(example: Batch) -> Iterator[Batch]:
    """The example, its first item, the example twice, and a masked token."""
    yield example
    yield example[:1]
    yield example._map(lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() else tensor)
    mask = example.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > 1:
        shorter = mask.clone()
        shorter[0, -1] = 0
        yield Batch(example.args, {**example.kwargs, "attention_mask": shorter})


def _tolerance(output: Tensor) -> float:
    return rounding_tolerance([output.dtype, torch.float32])


def _with_fixed_axes(model: nn.Module, exported: OnnxModel, example: Batch, groups: Iterable[Axes], images: Iterable[Axes]) -> OnnxModel:
    """The exported model with every axis fixed that the model leaves open and the graph does not; its signature states them, and `images`."""
    symbols = {(item.name, axis) for item in exported.session.get_inputs() for axis, size in enumerate(item.shape) if isinstance(size, str)}
    sizes = {name: tensor.shape for name, tensor in exported.signature.tensors(example).items()}
    fixed: dict[str, dict[int, int]] = {}
    for group in groups:
        kept = {each for each in group if each[0] in exported.signature.inputs}
        if kept <= symbols and all(_agrees(model, exported, batch) for batch in resized(exported.signature, example, group)):
            continue
        for name, axis in sorted(kept):
            fixed.setdefault(name, {})[axis] = sizes[name][axis]
    for name, axis in sorted(each for group in images for each in group if each[0] in exported.signature.inputs):
        fixed.setdefault(name, {})[axis] = sizes[name][axis]
    if not fixed:
        return exported
    graph = exported.graph()
    fix_axes(graph, fixed)
    return OnnxModel(graph.SerializeToString(), replace(exported.signature, fixed=fixed))


def _agrees(model: nn.Module, exported: OnnxModel, batch: Batch) -> bool:
    """Whether the graph gives what the model gives; also where the model itself does not accept the batch."""
    try:
        expected = describe_output(batch.call(model))[1]
    except Exception:  # any model may refuse a size in any way
        return True
    try:
        found = describe_output(batch.call(exported))[1]
    except KdError:
        return False
    return all(relative_difference(want, got) <= _tolerance(want) for want, got in zip(expected, found, strict=True))


_PADDING = "torch's nn.TransformerEncoder gives zeros at padded positions in eval mode and other values in training, as the graph does: mask its output before pooling"


def _check(model: nn.Module, exported: OnnxModel, batch: Batch) -> None:
    try:
        expected = describe_output(batch.call(model))[1]
    except Exception:  # torch itself fails on this variant, so there is nothing to compare
        return
    found = describe_output(_call(exported, batch, f"the graph of {type(model).__name__} fails where the model runs"))[1]
    for index, (want, got) in enumerate(zip(expected, found, strict=True)):
        off = relative_difference(want, got)
        if off > _tolerance(want):
            shape = tuple(next(item for item in (*batch.args, *batch.kwargs.values()) if isinstance(item, Tensor)).shape)
            raise KdError(
                f"the exported {type(model).__name__} differs from the model: on an input of shape {shape} output {index} is off by {off:.2g} of its largest value",
                "forward probably depends on the example: its batch size, its length, or a random number",
                _PADDING if any(isinstance(module, nn.TransformerEncoder) for module in model.modules()) else "",
            )

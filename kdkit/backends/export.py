"""From torch to ONNX: export, tidy, and check against torch on other batches than the example."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kdkit.backends.graph import name_by_module, tidy
from kdkit.backends.onnx_model import OnnxModel
from kdkit.backends.signature import Signature, describe_output
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import evaluating

if TYPE_CHECKING:
    from onnx import ModelProto

LARGEST = 2 * 1024**3
"""Bytes one ONNX file can hold: protobuf counts in signed 32 bits."""

TOLERANCE = 1e-3
"""How far the graph may be from torch, as a share of the output's largest magnitude."""


class _Flat(nn.Module):
    """A model as a function of its tensors alone, which gives its tensors alone."""

    def __init__(self, model: nn.Module, signature: Signature, batch: Batch):
        super().__init__()
        self.model = model
        self._signature, self._by_position = signature, len(batch.args)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self._signature.inputs, tensors, strict=True)) | dict(self._signature.constants)
        args = [given.pop(name) for name in self._signature.parameters[: self._by_position]]
        return tuple(describe_output(self.model(*args, **given))[1])


def to_onnx(model: nn.Module, example: Batch, attention: Literal["eager", "keep"] = "eager", opset: int | None = None) -> OnnxModel:
    """Export a model, in eval mode and in float32, with batch and token axes of any size.

    Args:
        model: any nn.Module; it is left as it was.
        example: a batch that the model can be called with; also what the graph is checked on.
        attention: "eager" exports HF transformers with plain attention, which is faster in 8 bits; "keep" as configured.
        opset: ONNX operator set; the exporter's own when not said.

    Raises:
        KdError: the model can't be exported, is larger than 2 GB, or the graph doesn't give what torch gives.
    """
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if held >= LARGEST:
        raise KdError(f"the model holds {held / 1024**3:.1f} GB of weights, and one ONNX file holds 2 GB at most", "export a smaller version of it")
    model = _plain(model)
    example = _several(Batch(example.args, example.kwargs).to("cpu"))
    with exportable(model, attention):
        sample = example[:3] if example.size != 3 else example[:2]
        output = _call(model, example)
        signature = Signature.of(model, example, output)
        _call(model, sample, f"the model runs on {example.size} items and not on {sample.size}", _FIXED)
        graph = _export(model, signature, sample, len(describe_output(output)[1]), opset)
        exported = _wrap(graph, signature)
        for batch in _variants(example, exported):
            _check(model, exported, batch)
    return exported


_FIXED = "its forward fixes the batch size: write x.flatten(1) or x.reshape(x.shape[0], -1) instead of a number"


def _call(model: nn.Module, batch: Batch, problem: str = "the model can't be called with the example batch", hint: str = "") -> Any:
    try:
        return batch.call(model)
    except Exception as error:  # whatever a user's forward raises
        lines = str(error).strip().splitlines() or [""]
        raise KdError(f"{type(model).__name__} can't be exported to ONNX: {problem}: {type(error).__name__}: {lines[0]}", hint) from error


def _plain(model: nn.Module) -> nn.Module:
    """The model itself, or a copy on the CPU in float32 where it is elsewhere or in half precision."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.device.type == "cpu" and tensor.dtype not in (torch.float16, torch.bfloat16) for tensor in tensors):
        return model
    return copy.deepcopy(model).cpu().float()


@contextlib.contextmanager
def exportable(model: nn.Module, attention: Literal["eager", "keep"] = "eager") -> Iterator[None]:
    """The model as it can be exported: eval mode, no gradients, no cache, HF attention as asked; all put back afterwards."""
    config: Any = getattr(model, "config", None)
    hf: Any = model
    cached = getattr(config, "use_cache", None)
    implementation = getattr(config, "_attn_implementation", None)
    change = attention == "eager" and implementation not in (None, "eager") and hasattr(model, "set_attn_implementation")
    with evaluating(model):
        try:
            if cached:
                config.use_cache = False
            if change:
                hf.set_attn_implementation("eager")
            yield
        finally:
            if cached:
                config.use_cache = cached
            if change:
                hf.set_attn_implementation(implementation)


def _several(batch: Batch) -> Batch:
    """At least two items: an axis of length one would be taken for a constant."""
    return batch if batch.size > 1 else batch._map(lambda tensor: torch.cat([tensor, tensor]))


def _dynamic_axes(tensor: Tensor) -> dict[int, Any]:
    """The batch, and the second axis of what can be a sequence: ids (batch, tokens) and features (batch, tokens, width)."""
    auto = torch.export.Dim.AUTO
    if not tensor.dim():
        return {}
    sequence = tensor.dim() == 3 or (tensor.dim() == 2 and not tensor.is_floating_point())
    return {0: auto, 1: auto} if sequence and tensor.shape[1] > 1 else {0: auto}


def _export(model: nn.Module, signature: Signature, batch: Batch, outputs: int, opset: int | None) -> ModelProto:
    given = dict(zip(signature.parameters, batch.args, strict=False)) | dict(batch.kwargs)
    tensors = tuple(given[name] for name in signature.inputs)
    with _quiet():
        try:
            program = torch.onnx.export(
                _Flat(model, signature, batch).eval(),
                tensors,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=list(signature.inputs),
                output_names=[f"output_{index}" for index in range(outputs)],
                dynamic_shapes=(tuple(map(_dynamic_axes, tensors)),),
                opset_version=opset,
            )
        except Exception as error:  # the exporter's errors share no base, and torch.export's own none with them
            raise _unexportable(model, error) from error
    assert program is not None
    graph = program.model_proto
    name_by_module(graph, dict(model.named_modules()).keys() - {""}, "model.")
    tidy(graph)
    return graph


def _unexportable(model: nn.Module, error: BaseException) -> KdError:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return KdError(
        f"{type(model).__name__} can't be exported to ONNX: {type(cause).__name__}: {lines[0] if lines else ''}",
        "a forward that branches on the values of tensors, or calls .item(), .tolist() or numpy, can't become a graph: write it with torch.where",
        "%tb shows where",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No remarks from the exporter: what matters of them comes back as an error."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _wrap(graph: ModelProto, signature: Signature) -> OnnxModel:
    """The graph as a model; inputs that it does not read are taken out of both.

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
                _FIXED,
            )
    names = tuple(item.name for item in kept)
    unused = tuple(name for name in signature.inputs if name not in names)
    return OnnxModel(graph.SerializeToString(), Signature(signature.parameters, names, unused, signature.constants, signature.output))


def _variants(example: Batch, exported: OnnxModel) -> Iterator[Batch]:
    """The example, one item of it, twice as many, some of it masked, and shorter sequences where the graph takes them."""
    yield example
    yield example[:1]
    yield example._map(lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() else tensor)
    mask = example.kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > 1:
        shorter = mask.clone()
        shorter[0, -1] = 0
        yield Batch(example.args, {**example.kwargs, "attention_mask": shorter})
    sequences = {item.name for item in exported.session.get_inputs() if len(item.shape) > 1 and isinstance(item.shape[1], str)}
    given = dict(zip(exported.signature.parameters, example.args, strict=False)) | dict(example.kwargs)
    lengths = {given[name].shape[1] for name in sequences}
    if len(lengths) == 1 and (length := lengths.pop()) > 2 and sequences == set(exported.signature.inputs):
        yield example._map(lambda tensor: tensor[:, : length // 2] if tensor.dim() > 1 and tensor.shape[1] == length else tensor)


def _check(model: nn.Module, exported: OnnxModel, batch: Batch) -> None:
    try:
        expected = describe_output(batch.call(model))[1]
    except Exception:  # torch itself does not take this variant, so there is nothing to compare
        return
    found = describe_output(batch.call(exported))[1]
    for index, (want, got) in enumerate(zip(expected, found, strict=True)):
        off = _distance(want, got)
        if off > TOLERANCE:
            shape = tuple(next(item for item in (*batch.args, *batch.kwargs.values()) if isinstance(item, Tensor)).shape)
            raise KdError(
                f"the exported {type(model).__name__} is not the model: on an input of shape {shape} output {index} is off by {off:.2g} of its largest value",
                "something in forward depends on the example: its batch size, its length, a random number",
            )


def _distance(want: Tensor, got: Tensor) -> float:
    """The largest difference as a share of the largest finite magnitude; infinite where shapes or non-finite places differ."""
    if want.shape != got.shape:
        return float("inf")
    want, got = want.double(), got.double()
    if not want.numel():
        return 0.0
    finite = want.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return float("inf")
    want, got = want[finite], got[finite]
    return float((want - got).abs().max() / want.abs().max().clamp_min(1e-3)) if want.numel() else 0.0

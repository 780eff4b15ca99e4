"""Tracing: what every export of a model to a graph needs, whatever the graph is written as."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, Literal, TextIO

import torch
from torch import nn

from kdkit.data import Batch
from kdkit.guards import always_run
from kdkit.models.evaluation import evaluating

FIXED_BATCH = "its forward fixes the batch size: write x.flatten(1) or x.reshape(x.shape[0], -1) instead of a number"
"""The hint for a model whose graph would take one batch size alone."""

NO_GRAPH = "a forward that branches on the values of tensors, or calls .item(), .tolist() or numpy, can't become a graph: write it with torch.where"
"""The hint for a model that has no graph."""


@contextlib.contextmanager
def exportable(model: nn.Module, attention: Literal["eager", "keep"] = "eager") -> Iterator[None]:
    """Prepare a model for export: eval mode, no gradients, no cache, the selected HF attention; all is restored afterwards.

    Experts of HF transformers multiply all their weights in one batched product, the only one of their forms that a graph can hold.
    """
    config: Any = getattr(model, "config", None)
    hf: Any = model
    cached = getattr(config, "use_cache", None)
    with evaluating(model), contextlib.ExitStack() as after:
        if cached:
            config.use_cache = False
            after.callback(setattr, config, "use_cache", cached)
        implementation = getattr(config, "_attn_implementation", None)
        if attention == "eager" and implementation not in (None, "eager") and hasattr(model, "set_attn_implementation"):
            after.callback(hf.set_attn_implementation, _attention_of(config))
            hf.set_attn_implementation("eager")
        if hasattr(model, "get_experts_implementation") and _has_experts(model):
            after.callback(hf.set_experts_implementation, hf.get_experts_implementation())
            hf.set_experts_implementation("batched_mm")
        yield


def _attention_of(config: Any) -> Any:
    """The attention implementations of a config of transformers, as `set_attn_implementation` takes them: a part may have another than the whole."""
    parts = {name: _attention_of(part) for name in getattr(config, "sub_configs", None) or () if (part := getattr(config, name, None)) is not None}
    own = getattr(config, "_attn_implementation", None)
    return {"": own, **parts} if parts else own


def _has_experts(model: nn.Module) -> bool:
    """Whether a module of the model chooses among the forms of experts that transformers has."""
    return any(hasattr(type(module), "_apply_gate") for module in model.modules())


def with_two_items(batch: Batch) -> Batch:
    """The batch with at least two items: the exporter treats an axis of length 1 as a constant."""
    return batch if batch.size > 1 else batch._map(lambda tensor: torch.cat([tensor, tensor]))


class _Muted(io.TextIOBase):
    """A stream that drops what this thread writes, and passes on what other threads write."""

    def __init__(self, stream: TextIO):
        self.stream, self.thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Silence the exporter's logs, warnings and prints; problems that matter are raised as errors."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels, streams = [logger.level for logger in loggers], (sys.stdout, sys.stderr)

    def restore() -> None:
        sys.stdout, sys.stderr = streams
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

    with always_run(restore), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        sys.stdout, sys.stderr = map(_Muted, streams)  # torch prints the graph of a forward that it refuses
        yield

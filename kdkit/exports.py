"""Exports: a version in a form that runs without kdkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kdkit.contract import Trait
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import traits_of


def export(model: nn.Module, path: Path, example: Batch | None) -> Path:
    """Write `model` as ONNX (`.onnx`), or, for HF models, as a folder for `from_pretrained`.

    Raises:
        KdError: another suffix, a form this model can't take, or a place that can't be written.
    """
    try:
        if path.suffix == ".onnx":
            path.write_bytes(_onnx_bytes(model, example))
        elif path.suffix == "" and hasattr(model, "save_pretrained"):
            _save_pretrained(model, path)
        else:
            raise KdError(
                f"{path.name}: no export of that form",
                "name.onnx writes ONNX; for a transformers model a folder writes what from_pretrained reads",
                "%kd save keeps everything for kdkit",
            )
    except OSError as error:
        raise KdError(f"can't write {path}: {error.strerror or error}", "choose a folder that exists and that you may write to") from error
    return path


def _onnx_bytes(model: nn.Module, example: Batch | None) -> bytes:
    from kdkit.backends.onnxruntime import OnnxModel, to_onnx

    if isinstance(model, OnnxModel):
        return model.onnx
    standing = traits_of(model) & {Trait.ADAPTERS_ATTACHED, Trait.MASKS_PENDING, Trait.PACKED_WEIGHTS}
    if standing:
        raise KdError(f"a version with {', '.join(sorted(standing)).replace('_', ' ')} can't be exported", "merge or fold first, such as %kd peft merge")
    if example is None:
        raise KdError("ONNX export needs one batch of inputs, and the session has no data", "%kd set --example {batch}")
    return to_onnx(model, example).onnx


def _save_pretrained(model: Any, path: Path) -> None:
    from transformers import PreTrainedModel

    from kdkit.structure import fits_config, sync_config

    sync_config(model)
    if isinstance(model, PreTrainedModel) and not fits_config(model):
        raise KdError(
            f"{path.name}: from_pretrained could not read this version: no {type(model.config).__name__} states its structure",
            "name.onnx writes ONNX",
            "%kd save keeps it for kdkit",
            "merge adapters first: %kd peft merge" if Trait.ADAPTERS_ATTACHED in traits_of(model) else "",
        )
    model.save_pretrained(path)

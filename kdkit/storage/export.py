"""Export a version to a form that runs without kdkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kdkit.backends.exported_program import read_program, write_program
from kdkit.backends.onnx.export import to_onnx
from kdkit.backends.onnx.model import OnnxModel
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import find_difference, has_export_forms, in_export_forms, private_copy
from kdkit.models.traits import Trait, traits_of
from kdkit.storage.atomic_file import replace_path
from kdkit.storage.pretrained_folder import write_pretrained


def export(model: nn.Module, path: Path, example: Batch | None, replace_other: bool = True, tokenizer: Any = None, card: str = "") -> Path:
    """Write `model` as ONNX (`.onnx`), as a program of torch.export (`.pt2`), or, for HF models, as a folder for `from_pretrained`.

    Args:
        model: the model.
        path: the file or folder.
        example: one batch of inputs, for ONNX and programs.
        replace_other: whether to replace a file with another content, and to write to a folder that is not empty.
        tokenizer: of a transformers model; its files are written to the folder.
        card: text of a model card: `README.md` in the folder, or a file of the same name with the suffix `.md`; default: none.

    Raises:
        KdError: the suffix is unknown, this model can't be exported to that form, the path can't be written or must not be replaced, or the
            file's outputs differ.
    """
    try:
        if card and path.suffix and not replace_other and (place := card_beside(path)).exists():
            raise KdError(f"{place} exists", *_REPLACE)
        if path.suffix == ".onnx":
            _write_onnx(model, path, example, replace_other)
        elif path.suffix == ".pt2":
            _write_program(model, path, example, replace_other)
        elif path.suffix == "" and hasattr(model, "save_pretrained"):
            if not replace_other and path.is_dir() and any(path.iterdir()):
                raise KdError(f"{path} is not empty", *_REPLACE)
            write_pretrained(model, path, example, tokenizer, {"README.md": card} if card else {})
        else:
            raise KdError(
                f"{path.name}: there is no export with that suffix",
                "name.onnx writes ONNX, and name.pt2 a program of torch.export; for a transformers model, a folder name writes files that from_pretrained reads",
                "%kd save keeps everything for kdkit",
            )
        if card and path.suffix:
            with replace_path(card_beside(path)) as part:
                part.write_text(card, encoding="utf-8")
    except OSError as error:
        raise KdError(f"can't write {path}: {error.strerror or error}", "choose a folder that exists and that you may write to") from error
    return path


def card_beside(path: Path) -> Path:
    """Where the model card of an exported file is written.

    >>> card_beside(Path("small.onnx")).name
    'small.md'
    """
    return path.with_suffix(".md")


_REPLACE = ("--force replaces it", "or choose another name")


def _write_onnx(model: nn.Module, path: Path, example: Batch | None, replace_other: bool) -> None:
    """Write the graph beside the path, read it back, compare it with the model in onnxruntime, and only then give it its name."""
    graph = _graph(model, example)
    if not replace_other and path.exists() and path.read_bytes() != graph.onnx:
        raise KdError(f"{path} holds something else", *_REPLACE)
    with replace_path(path) as part:
        part.write_bytes(graph.onnx)
        written = OnnxModel(part.read_bytes(), graph.signature, graph.packed, graph.without)
        fault = "" if example is None else find_difference(model, written, Batch(example.args, example.kwargs))
        written.close()
        if fault:
            raise KdError(f"{path.name} was not written: in onnxruntime, {fault}", "%kd save keeps the version for kdkit")


def _graph(model: nn.Module, example: Batch | None) -> OnnxModel:
    return model if isinstance(model, OnnxModel) else to_onnx(model, _inputs_for(model, example))


def _inputs_for(model: nn.Module, example: Batch | None) -> Batch:
    """The batch to trace a model with, if the model can be traced."""
    form = in_export_forms(private_copy(model)) if has_export_forms(model) else model
    unsupported = traits_of(form) & {Trait.ADAPTERS_ATTACHED, Trait.MASKS_PENDING, Trait.PACKED_WEIGHTS}
    if unsupported:
        raise KdError(f"a version with {', '.join(sorted(unsupported)).replace('_', ' ')} can't be exported", "merge or fold first, such as %kd peft merge")
    if example is None:
        raise KdError("the export needs one batch of inputs, and the session has no data", "%kd set --example {batch}")
    return example


def _write_program(model: nn.Module, path: Path, example: Batch | None, replace_other: bool) -> None:
    """Write the program beside the path, read it back, compare it with the model, and only then give it its name."""
    if isinstance(model, OnnxModel):
        raise KdError(f"{path.name}: this version is an ONNX graph, which torch can't export", "name.onnx writes it", "a version before %kd convert onnx can be exported")
    batch = _inputs_for(model, example)
    if not replace_other and path.exists():
        raise KdError(f"{path} exists", *_REPLACE)
    with replace_path(path) as part:
        write_program(model, part, batch)
        if fault := find_difference(model, read_program(part), Batch(batch.args, batch.kwargs)):
            raise KdError(f"{path.name} was not written: as a program, {fault}", "%kd save keeps the version for kdkit")

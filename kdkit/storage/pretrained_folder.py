"""A folder that `from_pretrained` of transformers reads."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import find_difference
from kdkit.models.traits import Trait, traits_of
from kdkit.storage.atomic_folder import replace_folder
from kdkit.storage.transformers_config import fits_config, sync_config

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|pytorch_model.*\.(bin|json)|generation_config\.json")
"""Names of the files of a former model, which must not remain beside those of a new one."""


def write_pretrained(model: Any, path: Path, example: Batch | None, tokenizer: Any = None, texts: dict[str, str] | None = None) -> None:
    """Write a transformers model as a folder for `from_pretrained`: config, weights as safetensors, and what reads its inputs.

    The folder is read back and compared with the model before it gets its name. Files in it that are not of a model stay.

    Args:
        model: a transformers model, such as a `PreTrainedModel`; uniformly pruned sizes are written to its config.
        path: the folder.
        example: a batch to compare the written model with; default: its weights are compared only.
        tokenizer: its files are written too.
        texts: further files, name -> content, such as a model card.

    Raises:
        KdError: no config states the model's structure, or what was written differs.
        OSError: the folder can't be written.
    """
    from transformers import PreTrainedModel

    sync_config(model)
    if isinstance(model, PreTrainedModel) and not fits_config(model):
        raise KdError(
            f"{path.name}: from_pretrained could not read this version: no {type(model.config).__name__} states its structure",
            "name.onnx writes ONNX",
            "%kd save keeps it for kdkit",
            "merge adapters first: %kd peft merge" if Trait.ADAPTERS_ATTACHED in traits_of(model) else "",
        )
    with replace_folder(path) as fresh, _without_progress_bars():
        model.save_pretrained(fresh)
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(fresh)
        for name, text in (texts or {}).items():
            (fresh / name).write_text(text, encoding="utf-8")
        if isinstance(model, PreTrainedModel) and example is not None and (fault := _fault(model, fresh, example)):
            raise KdError(f"{path.name} was not written: read by from_pretrained, {fault}", "%kd save keeps the version for kdkit")
        _keep_others(path, fresh)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Show no bars for weights that are written and read in a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _fault(model: Any, folder: Path, example: Batch) -> str:
    """What differs in the outputs of the model that `from_pretrained` reads; empty if nothing does."""
    kind: Any = type(model)
    written = kind.from_pretrained(folder, local_files_only=True, dtype=model.dtype, attn_implementation=model.config._attn_implementation)
    written.train(model.training)
    return find_difference(model, written, Batch(example.args, example.kwargs))


def _keep_others(path: Path, fresh: Path) -> None:
    """Link the files of a folder into the one that replaces it, without those that were written again and those of a former model."""
    for file in path.rglob("*") if path.is_dir() else ():
        place = fresh / file.relative_to(path)
        if file.is_dir() and not file.is_symlink():
            place.mkdir(exist_ok=True)
        elif not place.exists() and not (file.parent == path and _WEIGHTS.fullmatch(file.name)):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, place, follow_symlinks=False)

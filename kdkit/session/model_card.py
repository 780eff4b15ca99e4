"""Model card: what a version is, how it was made, its figures and its licence, as Markdown with the metadata of the Hugging Face Hub."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdkit.display.table import Cell, Table
from kdkit.display.table_text import write_markdown
from kdkit.errors import KdError, printable
from kdkit.measurement.report import Figure
from kdkit.pipelines.yaml_file import write_yaml
from kdkit.session.history import History, Version
from kdkit.session.saving import recipe_data
from kdkit.storage.environment import environment

NO_LICENCE = "Not stated. The licence of the base model and of its training data apply; `%kd export … --license NAME` states it here."


def write_card(history: History, version: Version, path: Path, licence: str = "", task: str = "") -> str:
    """The model card of a version.

    Args:
        history: of the session; the version is compared with its first version.
        version: the version.
        path: the exported file or folder, whose name is the title and whose suffix decides how it is read.
        licence: an identifier such as "apache-2.0"; default: that of the base model's own card, where it is on this machine.
        task: name of the task that the figures are of.

    Returns:
        Markdown, which begins with metadata in YAML.

    Raises:
        KdError: the licence is no single line.
    """
    if licence != printable(licence).strip():
        raise KdError(f"{licence!r} is not the name of a licence", "write one line, such as --license apache-2.0")
    first, model = history.lineage(version)[0], history.model_of(version)
    licence = licence or _base_licence(model)
    parts = [
        _metadata(model, licence, path),
        f"# {path.stem}",
        f"{type(model).__name__} that [kdkit](https://pypi.org/project/kdkit) made from {printable(first.origin or first.name).removeprefix('use ')}.",
        *_section("What was done", _steps(history, version)),
        *_section("Figures", _figures(first, version, task)),
        *_section("Use", [f"```python\n{_use(model, path)}\n```"]),
        *_section("Recipe", [f"```yaml\n{write_yaml(recipe_data(history, version)).strip()}\n```", "`%kd run recipe.yaml` applies it to another model."]),
        *_section("Licence", [licence or NO_LICENCE]),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, blocks: Iterable[str]) -> list[str]:
    found = [block for block in blocks if block]
    return [f"## {title}", *found] if found else []


def _metadata(model: nn.Module, licence: str, path: Path) -> str:
    from huggingface_hub import ModelCardData

    base = _base_name(model)
    data = ModelCardData(
        base_model=None if base is None or Path(base).exists() else base,
        library_name="transformers" if hasattr(model, "save_pretrained") and not path.suffix else "onnx" if path.suffix == ".onnx" else "pytorch",
        license=licence or None,
        tags=["kdkit", "model-compression"],
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _base_name(model: nn.Module) -> str | None:
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return name if isinstance(name, str) and name and name == printable(name) else None


def _base_licence(model: nn.Module) -> str:
    """The licence in the card beside the base model's files, if they are on this machine."""
    card = Path(_base_name(model) or "") / "README.md"
    if not _base_name(model) or not card.is_file():
        return ""
    from huggingface_hub import ModelCard

    try:
        licence: Any = ModelCard.load(card).data.license
    except Exception:  # a card may hold anything
        return ""
    return licence if isinstance(licence, str) and licence == printable(licence) else ""


def _steps(history: History, version: Version) -> list[str]:
    made = [each for each in history.lineage(version) if each.stage is not None]
    lines = []
    for number, each in enumerate(made, 1):
        lines += [f"{number}. `{printable(each.made_by)}`", *(f"   - {printable(note)}" for note in each.notes)]
    return ["\n".join(lines)] if lines else ["Nothing: this is the model as it was given."]


def _figures(first: Version, version: Version, task: str) -> list[str]:
    if not version.report:
        return []
    rows = [_row(figure, first.report.get(figure.name) if first is not version else None) for figure in version.report.values() if figure.headline]
    columns = ["figure", "before", "after", "change"] if first is not version else ["figure", "value"]
    table = str(write_markdown(Table(columns, [row[: len(columns)] if first is not version else [row[0], row[2]] for row in rows]))).strip()
    threads = torch.get_num_threads()
    packages = ", ".join(f"{name} {number}" for name, number in environment(nn.Identity()).items())
    return [
        table,
        (f"The task is {task}. " if task else "")
        + f"Measured on the session's evaluation data, on {platform.machine()} with {threads} thread{'s' * (threads > 1)} ({packages}).",
        "\n".join(f"- {printable(note)}" for note in version.report.notes),
    ]


def _row(figure: Figure, before: Figure | None) -> list[Any]:
    return [figure.name, "" if before is None else Cell(before.text()), Cell(figure.text()), "" if before is None else Cell(figure.against(before))]


def _use(model: nn.Module, path: Path) -> str:
    if path.suffix == ".onnx":
        return f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{path.name}")\nprint([each.name for each in session.get_inputs()])'
    if path.suffix == ".pt2":
        return f'import torch\n\nmodel = torch.export.load("{path.name}").module()'
    return f'from transformers import {type(model).__name__}\n\nmodel = {type(model).__name__}.from_pretrained("{path.name}")'

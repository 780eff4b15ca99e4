"""Checkpoints: the state of a training after an epoch, as safetensors and JSON; reading one executes nothing."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import KdError, brief, printable
from kdkit.guards import explain_error
from kdkit.guards.folder_lock import lock_folder
from kdkit.guards.leftovers import find_temporaries, remove_abandoned
from kdkit.guards.torch_modes import without_gradients
from kdkit.stages.stage import Stage
from kdkit.storage.atomic_file import replace_file, replace_path
from kdkit.storage.record import read_record
from kdkit.storage.sparse_file import describe_sparse
from kdkit.training.checkpoint_index import LARGEST_BYTES, SCHEMA, Facts, Index

_FACTS = "training.json"
_NOT_IDENTITY = {"checkpoint", "resume"}


class Checkpoint:
    """A folder with the last epoch of one training.

    Args:
        folder: created by the first `write`; only files that its index lists are read, replaced or deleted.
        identity: plain data that identifies the training; the checkpoint of another training is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder = folder
        self.identity = identity

    def claim(self) -> Index:
        """The index of the folder, or a new one.

        Raises:
            KdError: the folder also holds files that no checkpoint's index lists; they could be the user's.
        """
        present = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        index = self._read_index() if _FACTS in present else Index(identity=self.identity)
        temporary = {path.name for name in (_FACTS, *index.names) for path in find_temporaries(self.folder / name)}
        others = sorted(present - {_FACTS} - index.names - temporary)
        if others:
            shown = printable(", ".join(others[:5]))
            raise KdError(f"the folder {self.folder} also holds {shown}, which this checkpoint did not write", "choose a new --checkpoint folder, or move these files")
        self._check_files(index.names)
        return index

    def _check_files(self, names: Iterable[str]) -> None:
        """Check that the index and these files are plain files: writing to a link would replace a file elsewhere, and a pipe is never read to its end."""
        for path in (self.folder / name for name in (_FACTS, *sorted(names))):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise KdError(f"{path.name} in the folder {self.folder} is a link, or no file", "choose a new --checkpoint folder")

    def write(self, epoch: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Replace the last epoch; the previous one stays valid until the new one is complete.

        Raises:
            KdError: the folder can't be written to, or holds files of others.
        """
        from safetensors import SafetensorError

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock_folder(self.folder):
                self._write(epoch, tensors, Facts.model_validate_json(json.dumps(facts)))
        except (OSError, SafetensorError) as error:
            raise KdError(
                f"can't write the checkpoint in {self.folder}: {_reason(error)}", "choose a --checkpoint folder that you may write to, with room for it"
            ) from error

    def _write(self, epoch: int, tensors: dict[str, Tensor], facts: Facts) -> None:
        from safetensors.torch import save_file

        name, before = f"epoch-{epoch}.safetensors", self.claim()
        # a name is listed before its file exists, and until it is deleted: so a killed run leaves nothing that is nobody's
        listed = tuple(sorted({*before.names, name}))
        self._write_index(before.model_copy(update={"files": listed}))
        self._sweep(listed)
        with replace_path(self.folder / name) as fresh:
            save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, fresh)
            digest = _file_digest(fresh)
        self._write_index(Index(identity=self.identity, epoch=epoch, tensors=name, files=listed, sha256=digest, facts=facts))
        for old in before.names - {name}:
            (self.folder / old).unlink(missing_ok=True)

    def _write_index(self, index: Index) -> None:
        with replace_file(self.folder / _FACTS) as file:
            file.write(index.model_dump_json(indent=1).encode())

    def _sweep(self, names: Iterable[str]) -> None:
        """Delete what killed runs left of these files."""
        for name in (_FACTS, *names):
            remove_abandoned(self.folder / name)

    def _read_index(self) -> Index:
        path = self.folder / _FACTS
        try:
            if not path.is_file() or path.stat().st_size > LARGEST_BYTES:
                raise ValueError(f"{_FACTS} is no index")
            text = path.read_bytes()
            newer = re.search(rb'"kdkit_training": *(\d{1,9})\b', text[:200])
            if newer and int(newer[1]) > SCHEMA:
                raise KdError(f"the checkpoint in {self.folder} has format {int(newer[1])}; this kdkit reads {SCHEMA}", "update kdkit")
            return read_record(Index, text)
        except (OSError, ValueError) as error:
            raise self.damage(error) from error

    def damage(self, error: Exception) -> KdError:
        """The error for a checkpoint that can't be read."""
        return KdError(f"the checkpoint in {self.folder} is damaged: {_reason(error)[:300]}", "leave out --resume and choose a new --checkpoint folder")

    def read(self) -> tuple[dict[str, Tensor], Facts]:
        """The tensors and facts of the last epoch.

        Raises:
            KdError: there is no checkpoint; or it is damaged, of a newer kdkit, or of another training.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not (self.folder / _FACTS).exists():
            raise self._absence()
        try:
            with lock_folder(self.folder):
                index = self._read_index()
                if index.tensors is None or index.facts is None:
                    raise self._absence()
                self._compare(index.identity)
                path = self.folder / index.tensors
                self._check_files([path.name])
                if fault := describe_sparse(path):
                    raise ValueError(f"{path.name} {fault}")
                if index.sha256 is not None and _file_digest(path) != index.sha256:
                    raise ValueError(f"the checksum of {index.tensors} differs")
                return load_file(path), index.facts
        except (OSError, ValueError, SafetensorError) as error:
            raise self.damage(error) from error

    def _absence(self) -> KdError:
        return KdError(f"there is no checkpoint in {self.folder} to resume from", "leave out --resume to begin", "--checkpoint names the folder of the interrupted run")

    def _compare(self, other: dict[str, Any]) -> None:
        different = [key for key in self.identity if other.get(key) != self.identity[key]]
        if different:
            key = different[0]
            values = f": {brief(other.get(key))} there, {brief(self.identity[key])} here" if key != "model" else ""
            raise KdError(
                f"the checkpoint in {self.folder} is of another training; its {key} differs{values}",
                "resume with the same stage, options, seed, data and model",
                "or leave out --resume to begin from the start",
            )

    def remove(self) -> None:
        """Delete the files of `write`."""
        if not (self.folder / _FACTS).exists():
            return
        names = self._read_index().names
        self._sweep(names)
        for name in (*names, _FACTS):
            (self.folder / name).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Why a file could not be read or written, without the words of libraries; a ValueError is kdkit's own."""
    own = str(error) if isinstance(error, ValueError) else getattr(error, "strerror", None)
    return printable(own or explain_error(error))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(model: nn.Module, stages: Iterable[Stage], seed: int, steps: int, batches: int) -> dict[str, Any]:
    """What identifies a training: its stages and their parameters, the seed, the length, and the model before training."""
    described = [{"stage": stage.id, **{name: value for name, value in stage.changed().items() if name not in _NOT_IDENTITY}} for stage in stages]
    return json.loads(json.dumps({"stages": described, "seed": seed, "steps": steps, "batches": batches, "model": digest(model)}))


def digest(model: nn.Module) -> str:
    """A hash of all parameters and buffers, with their names, shapes and dtypes."""
    found = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if type(tensor.data) is Tensor and not tensor.is_meta:
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def changing(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a training may change, by name: trainable parameters, and buffers."""
    yield from ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    yield from model.named_buffers()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the tensors that a training may change."""
    return {name: tensor.detach().clone() for name, tensor in changing(model)}


@without_gradients
def restore(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore a snapshot.

    Raises:
        ValueError: it is not of such a model; nothing is changed then.
    """
    held = dict(changing(model))
    for name, tensor in held.items():
        if name not in tensors or tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
            raise ValueError(f"{name} is missing, or has another shape or dtype")
    for name, tensor in held.items():
        tensor.copy_(tensors[name])


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and plain numbers, by "index.name"."""
    state = {f"{index}.{name}": value for index, values in optimizer.state_dict()["state"].items() for name, value in values.items()}
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}, {key: value for key, value in state.items() if not isinstance(value, Tensor)}


_OPTIMIZER_STATE = frozenset({"step", "exp_avg", "exp_avg_sq", "momentum_buffer"})
"""What torch's Adam, AdamW and SGD keep for a weight."""


def unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Restore a packed state.

    Raises:
        ValueError: it is not of such an optimizer, or of other weights.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(weights) or name not in _OPTIMIZER_STATE:
            raise ValueError(f"the optimizer has no state {key}")
        if name != "step" and value is not None and getattr(value, "shape", None) != weights[int(index)].shape:
            raise ValueError(f"the optimizer's {key} is not of its weight's shape")
        state.setdefault(int(index), {})[name] = value
    if len({frozenset(held) for held in state.values()}) > 1:
        raise ValueError("the optimizer's state is incomplete")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

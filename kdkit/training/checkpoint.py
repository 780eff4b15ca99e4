"""Checkpoints: the state of a training after an epoch, as safetensors and JSON; nothing in them is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.contract import TrainStage
from kdkit.errors import KdError

SCHEMA = 1
"""The number of the format."""

_FACTS = "training.json"
_NOT_OF_THE_WORK = {"checkpoint", "resume"}


class Checkpoint:
    """A folder that holds the newest epoch of one training.

    Args:
        folder: where; made when first written.
        identity: what the training is: plain data; another one's checkpoint is refused.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder = folder
        self.identity = identity

    def write(self, epoch: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Replace the newest epoch; the one before stays whole until the new one is.

        Raises:
            KdError: the folder can't be written to.
        """
        from safetensors.torch import save_file

        name = f"epoch-{epoch}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, self.folder / f"{name}.part")
            (self.folder / f"{name}.part").replace(self.folder / name)
            text = json.dumps({"kdkit_training": SCHEMA, "identity": self.identity, "epoch": epoch, "tensors": name, "facts": facts}, indent=1)
            (self.folder / f"{_FACTS}.part").write_text(text)
            (self.folder / f"{_FACTS}.part").replace(self.folder / _FACTS)
            for old in self.folder.glob("epoch-*.safetensors*"):
                if old.name != name:
                    old.unlink()
        except OSError as error:
            raise KdError(f"can't write the checkpoint in {self.folder}: {error.strerror or error}", "choose a --checkpoint folder that you may write to") from error

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The newest epoch: its tensors and facts.

        Raises:
            KdError: there is none, it is damaged, of a newer kdkit, or another training made it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / _FACTS
        if not path.exists():
            raise KdError(f"there is no checkpoint in {self.folder} to go on from", "leave out --resume to begin", "--checkpoint names the folder of the interrupted run")
        try:
            read = json.loads(path.read_text())
            if read["kdkit_training"] != SCHEMA:
                raise KdError(f"the checkpoint in {self.folder} has format {read['kdkit_training']}; this kdkit reads {SCHEMA}", "update kdkit")
            self._compare(read["identity"])
            return load_file(self.folder / Path(read["tensors"]).name), read["facts"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise KdError(f"the checkpoint in {self.folder} is damaged: {type(error).__name__}: {error}", "leave out --resume to begin anew") from error

    def _compare(self, other: dict[str, Any]) -> None:
        different = [key for key in self.identity if other.get(key) != self.identity[key]]
        if different:
            key = different[0]
            told = f": {other.get(key)} there, {self.identity[key]} here" if key != "model" else ""
            raise KdError(
                f"the checkpoint in {self.folder} is of another training; its {key} differs{told}",
                "resume with the same stage, options, seed, data and model",
                "or leave out --resume to begin anew",
            )

    def remove(self) -> None:
        """Delete what `write` made."""
        for path in [*self.folder.glob("epoch-*.safetensors*"), *self.folder.glob(f"{_FACTS}*")]:
            path.unlink(missing_ok=True)


def identity(model: nn.Module, stages: Iterable[TrainStage], seed: int, steps: int, batches: int) -> dict[str, Any]:
    """What makes a training the same: its stages and their parameters, seed, length, and the model it began with."""
    told = [{"stage": stage.id, **{name: value for name, value in stage.changed().items() if name not in _NOT_OF_THE_WORK}} for stage in stages]
    return json.loads(json.dumps({"stages": told, "seed": seed, "steps": steps, "batches": batches, "model": digest(model)}))


def digest(model: nn.Module) -> str:
    """A hash of all parameters and buffers, with their names, shapes and dtypes."""
    found = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if type(tensor.data) is Tensor and not tensor.is_meta:
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def changing(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a training may change, by name: the parameters with gradients, and the buffers."""
    yield from ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    yield from model.named_buffers()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what a training may change."""
    return {name: tensor.detach().clone() for name, tensor in changing(model)}


@torch.no_grad()
def restore(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put a snapshot back."""
    for name, tensor in changing(model):
        tensor.copy_(tensors[name])


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and plain numbers, by "index.name"."""
    state = {f"{index}.{name}": value for index, values in optimizer.state_dict()["state"].items() for name, value in values.items()}
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}, {key: value for key, value in state.items() if not isinstance(value, Tensor)}


def unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put a packed state back."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

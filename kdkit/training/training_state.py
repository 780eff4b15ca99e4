"""The state of a training after an epoch: written to a checkpoint, and restored from it bit for bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.guards.scratch import make_scratch
from kdkit.stages.stage import Stage
from kdkit.training.checkpoint import Checkpoint, changing, identity, pack, restore, unpack
from kdkit.training.checkpoint_index import Facts
from kdkit.training.loss_history import LossHistory
from kdkit.training.options import LoopOptions
from kdkit.training.part import TrainPart
from kdkit.training.validation import EarlyStopping
from kdkit.training.weight_choice import WeightChoice

if TYPE_CHECKING:
    from kdkit.stages.context import Context

_WORTH_KEEPING_S = 30.0
"""Without --checkpoint, an epoch is written to the session's scratch folder once so much time has passed; less is repeated faster."""


@dataclass
class TrainingState:
    """All that changes in a training: what a checkpoint holds.

    Attributes:
        epoch, step: epochs and optimizer steps that are complete.
    """

    model: nn.Module
    parts: Sequence[TrainPart]
    optimizer: torch.optim.Optimizer
    scaler: Any
    early_stopping: EarlyStopping | None
    history: LossHistory
    choice: WeightChoice
    epoch: int = 0
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by "group/name"."""
        groups = {"model": dict(changing(self.model)), "optimizer": pack(self.optimizer)[0], "best": self.early_stopping.best if self.early_stopping else {}}
        groups |= {f"part{number}": dict(changing(part.modules)) for number, part in enumerate(self.parts)}
        return {f"{group}/{name}": tensor for group, held in groups.items() for name, tensor in held.items()}

    def facts(self) -> dict[str, Any]:
        """All else, as plain data."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "curve": self.history.intervals,
            "validation": self.history.validation,
            "optimizer": pack(self.optimizer)[1],
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "weights": self.choice.state(),
            "judge": self.early_stopping.state() if self.early_stopping else None,
        }

    def load(self, stored: dict[str, Tensor], facts: Facts, device: torch.device) -> None:
        """Restore what `tensors` and `facts` gave.

        Raises:
            ValueError: the tensors are not of this training.
        """

        def group(name: str) -> dict[str, Tensor]:
            return {key.partition("/")[2]: tensor for key, tensor in stored.items() if key.partition("/")[0] == name}

        if (facts.judge is None) != (self.early_stopping is None) or (facts.scaler is None) != (self.scaler is None):
            raise ValueError("it is of a training with other options")
        restore(self.model, group("model"))
        for number, part in enumerate(self.parts):
            restore(part.modules, group(f"part{number}"))
        unpack(self.optimizer, group("optimizer"), facts.optimizer)
        if self.early_stopping and facts.judge:
            best = group("best")
            held = dict(changing(self.model))
            if best and {name: tensor.shape for name, tensor in best.items()} != {name: tensor.shape for name, tensor in held.items()}:
                raise ValueError("the best epoch is of another model")
            self.early_stopping.load(facts.judge.model_dump(), {name: tensor.to(device) for name, tensor in best.items()})
        if self.scaler is not None and facts.scaler is not None:
            if facts.scaler.keys() != self.scaler.state_dict().keys():
                raise ValueError("the scaler's state is incomplete")
            self.scaler.load_state_dict(facts.scaler)
        self.epoch, self.step = facts.epoch, facts.step
        self.choice.load(facts.weights)
        self.history.intervals = list(facts.curve)
        self.history.validation = list(facts.validation)


class Checkpoints:
    """When a training's state is written, and where.

    Attributes:
        kept: the last epoch that was written; 0 before the first.
    """

    def __init__(self, checkpoint: Checkpoint | None, options: LoopOptions, writes: bool):
        self.checkpoint, self.options, self.writes = checkpoint, options, writes
        self.kept = 0
        self._written = time.monotonic()

    @classmethod
    def of(cls, state: TrainingState, stages: Sequence[Stage], options: LoopOptions, length: tuple[int, int], context: Context, writes: bool) -> Checkpoints:
        """For a training that begins.

        Args:
            length: optimizer steps of an epoch, and in all.
            writes: whether this process writes them.

        Raises:
            KdError: it is to resume, and there is no folder; or the folder holds files of others.
        """
        folder = options.checkpoint or context.scratch
        if not folder:
            if options.resume:
                raise KdError("there is no folder to resume from", "--checkpoint names the folder of the interrupted run")
            return cls(None, options, writes)
        epoch_steps, steps = length
        made = identity(state.model, stages, context.seed, steps, epoch_steps)
        checkpoint = Checkpoint(Path(folder) if options.checkpoint else Path(folder) / f"training-{made['model'][:12]}", made)
        if options.checkpoint and writes:
            checkpoint.claim()  # not only after an epoch
        return cls(checkpoint, options, writes)

    def write(self, state: TrainingState) -> None:
        """Write the state, where the user asked for it or enough time has passed."""
        if self.checkpoint is None or not self.writes:
            return
        if not self.options.checkpoint and time.monotonic() - self._written < _WORTH_KEEPING_S:
            return
        try:
            if not self.options.checkpoint:
                make_scratch(self.checkpoint.folder.parent)
        except OSError as error:
            raise KdError(f"can't make {self.checkpoint.folder.parent}: {error.strerror or error}", "--checkpoint names a folder that you may write to") from error
        self.checkpoint.write(state.epoch, state.tensors(), state.facts())
        self._written, self.kept = time.monotonic(), state.epoch

    def resume(self, state: TrainingState, device: torch.device) -> None:
        """Continue after the epoch that was written last."""
        assert self.checkpoint is not None
        stored, facts = self.checkpoint.read()
        try:
            state.load(stored, facts, device)
        except ValueError as error:
            raise self.checkpoint.damage(error) from error
        self.kept = state.epoch

    def finish(self) -> None:
        """Delete what was written without --checkpoint."""
        if self.checkpoint and not self.options.checkpoint and self.writes:
            self.checkpoint.remove()

"""The options of the training loop, shared by all stages that train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from kdkit.parameters.search import Search
from kdkit.parameters.settings import Settings, param


class LoopOptions(Settings):
    """How long, how fast and on what data the loop trains."""

    epochs: float = param(1.0, "passes over the training data", gt=0, search=(1, 10), main=True)
    steps: int | None = param(None, "optimizer steps, instead of epochs", ge=1)
    learning_rate: float = param(1e-3, "peak learning rate of the optimizer", gt=0, search=Search(1e-5, 1e-1, log=True), main=True)
    optimizer: Literal["adamw", "adam", "sgd"] = param("adamw", "sgd uses momentum 0.9")
    weight_decay: float = param(0.0, "L2 penalty on the weights; decoupled with adamw", ge=0)
    schedule: Literal["cosine", "linear", "constant"] = param("cosine", "decay of the learning rate after the warm-up")
    warmup: float = param(0.0, "share of the steps in which the learning rate rises linearly from zero", ge=0, lt=1)
    data: str = param("train", "the session's data to train on", names="data")
    batch_size: int | None = param(None, "items per batch; default: the batch size of the data", ge=1)
    accumulate: int = param(1, "batches per optimizer step; their gradients are accumulated", ge=1, advanced=True)
    clip: float | None = param(None, "maximum norm of the gradient; larger ones are scaled down", gt=0, advanced=True)
    precision: Literal["fp32", "bf16", "fp16"] = param("fp32", "of the computation; weights keep their dtype", advanced=True)
    compress: Literal["none", "fp16", "int8", "powersgd"] = param("none", "how several processes send each other gradients: in fewer bytes", advanced=True)
    validation: str | None = param(None, "data for choosing the best epoch and for early stopping; never the test data", names="data", advanced=True)
    patience: int | None = param(None, "stop after this many epochs without a better validation figure", ge=1, advanced=True)
    keep: Literal["last", "best"] = param("last", "the epoch whose weights are kept; best needs --validation", advanced=True)
    checkpoint: str | None = param(None, "folder to write each epoch to, so that --resume can continue from it", names="path", advanced=True)
    resume: bool = param(False, "continue from the last epoch of an interrupted run of this stage", advanced=True)

    def conflicts(self) -> Iterator[str]:
        """Conflicts between loop options, one line each."""
        for name, used in (("keep", self.keep == "best"), ("patience", self.patience is not None)):
            if used and self.validation is None:
                yield f"--{name} {getattr(self, name)} needs validation data: --validation {{held_out_loader}}"
        if self.resume and self.compress in ("int8", "powersgd"):
            yield f"--resume can't continue --compress {self.compress}: checkpoints don't hold what compression left out; use --compress fp16, or train again"

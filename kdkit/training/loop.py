"""The loop: one for every stage that trains, alone or together.

One forward pass of the model a batch; the terms of all parts on it; one backward pass; one optimizer step a window of
accumulated batches. Order of data and random numbers follow from the seed and the epoch alone, so a resumed training
equals one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdkit.contract import TrainStage
from kdkit.data import Batch, Data
from kdkit.errors import Cancelled, KdError
from kdkit.seeding import seed_all, seeded
from kdkit.training.balance import Balance, Share, pulls
from kdkit.training.checkpoint import Checkpoint, changing, identity, pack, restore, unpack
from kdkit.training.engine import Surroundings, arithmetic, engine, optimizer_of, unmarked
from kdkit.training.objective import Counts, Objective
from kdkit.training.part import Step, TrainPart
from kdkit.training.record import Record
from kdkit.training.schedules import rate
from kdkit.training.validation import Judge, validation_data

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdkit.context import Context

_LOOP = frozenset(TrainStage.model_fields)
_WORTH_KEEPING_S = 30.0
"""Without --checkpoint, work of this long is written to the session's scratch folder; less is sooner done again."""


def fit(model: nn.Module, stages: Sequence[TrainStage], context: Context) -> nn.Module:
    """Train a model for the parts of one or more stages, in one loop; the first stage's loop options count.

    Args:
        model: trained in place, or replaced where a stage brings a student of its own.
        stages: whose parts are summed.
        context: of the run; data, teachers and seed come from it.

    Returns:
        The trained model, in eval mode, without gradients, with the flags and on the device it came with.

    Raises:
        KdError: no data, no labels where a part needs them, nothing to train, or a loss that is not finite.
        Cancelled: the user asked to stop.
    """
    student, context = _student(model, stages, context)
    _note_unused_options(stages, context)
    surroundings = Surroundings()
    try:
        surroundings.clear()
        _train(student, stages, context)
    finally:
        try:
            surroundings.put_back()
        except KeyboardInterrupt:
            surroundings.put_back()
            raise
    return student


def _train(student: nn.Module, stages: Sequence[TrainStage], context: Context) -> None:
    accelerator = engine(context.device, stages[0].precision)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_in_training(student, accelerator.device))
        stack.enter_context(seeded(context.seed))
        stack.enter_context(unmarked([student]))
        parts = _opened(student, stages, context, stack, accelerator.device)
        _Loop(student, stages, parts, context, accelerator).run()


def _student(model: nn.Module, stages: Sequence[TrainStage], context: Context) -> tuple[nn.Module, Context]:
    """The model to train; where a stage brings one, the model at hand teaches it unless the session has a teacher."""
    brought = [student for student in (stage.learner(model, context) for stage in stages) if student is not model]
    if len(brought) > 1:
        raise KdError("two stages of one loop bring a student each", "leave out --student in all but one")
    changing = [stage.title for stage in stages if stage.adds or stage.removes]
    if brought and changing:
        raise KdError(
            f"{' and '.join(changing)} would change the model at hand, and the loop trains a student in its place",
            f"run the stage with --student alone, then {changing[0]} on what it makes",
        )
    return (brought[0], replace(context, original=model)) if brought else (model, context)


def _note_unused_options(stages: Sequence[TrainStage], context: Context) -> None:
    for stage in stages[1:]:
        unused = [f"--{name.replace('_', '-')}" for name, value in stage.changed().items() if name in _LOOP and value != getattr(stages[0], name)]
        if unused:
            context.note(f"{stage.title}: {' '.join(unused)} not used; the loop follows {stages[0].title}")


@contextlib.contextmanager
def _in_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on the device and in train mode; afterwards at home, in eval mode, with its flags and no gradients."""
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    places = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    moved = len(places) == 1 and places != {device}
    try:
        for weight, _ in flags:
            weight.grad = None
        if moved:
            model.to(device)
        model.train()
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)
        for weight in model.parameters():
            weight.grad = None
        model.eval()
        if moved:
            model.to(places.pop())


def _opened(model: nn.Module, stages: Sequence[TrainStage], context: Context, stack: contextlib.ExitStack, device: torch.device) -> dict[str, TrainPart]:
    """The parts of the stages, by title; the stack closes them in reverse order."""
    parts: dict[str, TrainPart] = {}
    for stage in stages:
        title = stage.id if stage.id not in parts else f"{stage.id}-{len(parts) + 1}"
        part = parts[title] = stage.part(model, context)
        stack.callback(part.close, model)
        part.open(model)
        part.modules.to(device)
        part.modules.train()
    return parts


class _Loop:
    """One training, from the first step to the last."""

    def __init__(self, model: nn.Module, stages: Sequence[TrainStage], parts: dict[str, TrainPart], context: Context, accelerator: Accelerator):
        self.model, self.parts, self.context, self.accelerator = model, parts, context, accelerator
        self.options, self.task, self.device = stages[0], context.task, accelerator.device
        self.data = _training_data(stages, context)
        self.record = Record()
        self.objective = Objective(parts, self.record)
        self.beside = [weight for part in parts.values() for weight in part.modules.parameters() if weight.requires_grad]
        self.weights = _trainable(model, self.beside)
        self.optimizer = optimizer_of(self.options, self.weights)
        self.cast = arithmetic(self.device, self.options.precision)
        self.rank, self.ranks, self.scaler = accelerator.process_index, accelerator.num_processes, accelerator.scaler
        self.prepared, stepper = accelerator.prepare(model, self.optimizer)
        # accelerate's optimizer adds only the scaler, and looks for a package on disk at each step
        self.stepper = stepper if self.scaler is not None else self.optimizer
        self.batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in model.modules())
        self.window = self.options.accumulate * self.ranks
        relational = [title for title, part in parts.items() if part.whole_batch]
        self.relational = bool(relational)
        self.wants_two = self.batch_norm or self.relational
        if relational and self.options.accumulate > 1:
            raise KdError(f"{relational[0]} compares the items of a batch, so batches can't be accumulated", "leave out --accumulate, and make --batch-size what fits")
        if relational and (self.options.batch_size or self.data.example().size) == 1:
            raise KdError(f"{relational[0]}: a batch of one item has nothing to compare it with", "use a larger --batch-size")
        self.epoch = self.step = 0
        self.left_out = False
        # other processes' gradients are not at hand, and a resumed training told it when it began
        self.balanced = self.ranks > 1 or self.options.resume
        self.epoch_steps, self.steps = self._length()
        held_out = validation_data(self.options, context)
        self.judge = Judge(self.options, context, held_out, self.device) if held_out is not None else None
        self.checkpoint = self._checkpoint(stages)
        self.told = self.written = time.monotonic()
        self.kept = 0

    def run(self) -> None:
        """Train to the end, or until the judge has seen enough."""
        try:
            self._run()
        except Cancelled as stop:
            if self.kept:
                stop.resumable = True
                stop.with_hints(f"epochs 1 to {self.kept} are kept: the same line with --resume goes on after them")
            raise

    def _run(self) -> None:
        if self.options.resume:
            self._resume()
        while self.step < self.steps and not (self.judge and self.judge.stopped):
            seed_all(self._seed(self.epoch))
            self._run_epoch()
            self.epoch += 1
            for part in self.parts.values():
                part.after_epoch(self.epoch)
            self._tell(self._judged())
            self._keep()
        self._finish()

    def _judged(self) -> dict[str, float]:
        if self.judge is None:
            return {}
        figures = self.judge.judge(self.epoch, self.model)
        self.record.validation.append((self.step, figures))
        return figures

    def _run_epoch(self) -> None:
        for window in _windows(self._batches(self.epoch), self.window):
            self.context.check_cancelled()
            self._optimize(window)
            if self.step == self.steps:
                break

    def _optimize(self, window: Sequence[Batch]) -> None:
        """One optimizer step over a window of batches."""
        counts = Counts.of(window, self.task, list(self.parts.values()))
        mine = window[self.rank :: self.ranks]
        progress = self.step / (self.steps - 1) if self.steps > 1 else 1.0
        for number, batch in enumerate(mine or window[:1], 1):
            if self.relational and batch.size == 1:
                raise KdError("a batch of one item has nothing to compare it with", "use a larger --batch-size")
            with self._unsynced() if number < len(mine) else contextlib.nullcontext():
                seen = self._backward(batch.to(self.device), counts, progress, bool(mine))
        self._update()
        self.step += 1
        for part in self.parts.values():
            part.after_step(seen)
        if self.step % max(1, self.steps // 100) == 0 or time.monotonic() - self.told > 1.0:
            self._tell({})

    def _backward(self, batch: Batch, counts: Counts, progress: float, counted: bool) -> Step:
        try:
            output = batch.call(self.prepared)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise KdError("batch norm can't train on a batch of one item", "use a larger --batch-size") from error
            raise
        seen = Step(batch, output, self.model, self.task, self.step, progress)
        first, self.balanced = not self.balanced, True
        shares: list[Share] | None = [] if first else None
        with self.cast:
            loss = self.objective.loss(seen, counts, shares)
        if shares:
            self._balance(shares, counts.items / batch.size)
        # gradients are averaged over processes, and the loss is a sum over them; a process without a batch only keeps step
        share = self.ranks if counted else 0
        loss = loss if share == 1 else loss * share
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return seen

    def _balance(self, shares: list[Share], cuts: float) -> None:
        """Tell what each of several terms weighs, and whether one swamps another; `cuts` batches of this one's size make the step."""
        if len({share.name for share in shares}) < 2:
            return
        whole = [replace(share, value=share.value * cuts) for share in shares] if cuts != 1 else shares
        try:
            found = pulls(whole, [weight for weight in self.model.parameters() if weight.requires_grad], 1.0 if self.scaler is None else self.scaler.get_scale())
        except RuntimeError as error:
            # such as too little memory, or checkpointing that allows no second look; the training itself may well go on
            self.context.note(f"the terms' gradients at the first step could not be told: {str(error).splitlines()[0]}")
            return
        if len(found) < 2:
            return
        balance = Balance(found, self.objective.reweighted)
        self.context.exhibit(balance)
        self.context.note(balance.note)
        if balance.warning:
            self.context.note(balance.warning)

    def _update(self) -> None:
        if self.ranks > 1:
            for weight in self.beside:
                weight.grad = None if weight.grad is None else self.accelerator.reduce(weight.grad, "mean")
        if self.options.clip is not None:
            self.accelerator.clip_grad_norm_(self.weights, self.options.clip)
        factor = rate(self.options.schedule, self.step, self.steps, self.options.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * factor
        self.stepper.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _unsynced(self) -> contextlib.AbstractContextManager:
        return self.accelerator.no_sync(self.prepared) if self.ranks > 1 else contextlib.nullcontext()

    def _seed(self, epoch: int) -> int:
        return (self.context.seed * 1_000_003 + epoch) % 2**32

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch in its order; a single item left over by larger ones is left out where batch norm can't take it."""
        before = 1
        for batch in self.data.batches(shuffle=True, seed=self._seed(epoch), batch_size=self.options.batch_size):
            if before > 1 and self.wants_two and batch.size == 1:
                self.left_out = True
            else:
                before = batch.size
                yield batch

    def _length(self) -> tuple[int, int]:
        """Optimizer steps of an epoch, and in all."""
        batches = self.data.length(self.options.batch_size)
        if batches is None and self.options.steps:
            return self.options.steps, self.options.steps
        if batches is None or (self.wants_two and batches > 1 and (self.data.items or 0) % (batches - 1) == 1 % (batches - 1)):
            batches = sum(1 for _ in self._batches(0))
        an_epoch = math.ceil(batches / self.window)
        return an_epoch, self.options.steps or max(1, math.ceil(self.options.epochs * an_epoch - 1e-9))

    def _tell(self, figures: dict[str, float]) -> None:
        """Read the terms off the device, and tell how far the training is."""
        try:
            losses = self.record.flush()
        except KdError as error:
            known = [hint for part in self.parts.values() for hint in part.diagnose()]
            raise error.with_hints(*(known or _remedies(self.options))) from None
        self.told = time.monotonic()
        epochs = math.ceil(self.steps / self.epoch_steps)
        self.context.progress(
            self.step, self.steps, f"epoch {min(self.epoch + 1, epochs)} of {epochs}", **losses, **figures, learning_rate=self.optimizer.param_groups[0]["lr"]
        )

    def _finish(self) -> None:
        if self.judge:
            self.judge.finish(self.model)
            if self.judge.stopped:
                self.context.note(f"stopped after epoch {self.epoch}: {self.judge.waited} without a better {self.task.metric}")
        sick = [name for name, weight in self.model.named_parameters() if weight.requires_grad and not torch.isfinite(weight).all()]
        if sick:
            raise KdError(f"after {self.step} steps the weights of {sick[0]} are not finite", *_remedies(self.options))
        if self.left_out:
            wants = "batch norm" if self.batch_norm else "comparing items"
            self.context.note(f"each epoch left out one item, which would have made a batch by itself; {wants} needs two")
        if summary := self.record.summary():
            self.context.note(f"{summary} in {self.step} steps")
            self.context.exhibit(self.record.told())
        if self.checkpoint and not self.options.checkpoint and self.accelerator.is_main_process:
            self.checkpoint.remove()

    def _checkpoint(self, stages: Sequence[TrainStage]) -> Checkpoint | None:
        folder = self.options.checkpoint or self.context.scratch
        if not folder:
            if self.options.resume:
                raise KdError("there is no folder to resume from", "--checkpoint names the folder of the interrupted run")
            return None
        made = identity(self.model, stages, self.context.seed, self.steps, self.epoch_steps)
        place = Path(folder) if self.options.checkpoint else Path(folder) / f"training-{made['model'][:12]}"
        return Checkpoint(place, made)

    def _keep(self) -> None:
        """Write the epoch down, where it was asked for or is worth it."""
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        if not self.options.checkpoint and time.monotonic() - self.written < _WORTH_KEEPING_S:
            return
        tensors, numbers = pack(self.optimizer)
        scaler = self.scaler.state_dict() if self.scaler is not None else None
        facts: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "curve": self.record.curve,
            "validation": self.record.validation,
            "optimizer": numbers,
            "scaler": scaler,
        }
        facts |= {"judge": self.judge.state() if self.judge else None}
        groups = {"model": dict(changing(self.model)), "optimizer": tensors, "best": self.judge.best if self.judge else {}}
        groups |= {f"part{number}": dict(changing(part.modules)) for number, part in enumerate(self.parts.values())}
        self.checkpoint.write(self.epoch, {f"{group}/{name}": tensor for group, held in groups.items() for name, tensor in held.items()}, facts)
        self.written, self.kept = time.monotonic(), self.epoch

    def _resume(self) -> None:
        """Go on from the checkpoint's epoch."""
        assert self.checkpoint is not None
        stored, facts = self.checkpoint.read()

        def group(name: str) -> dict[str, Tensor]:
            return {key.partition("/")[2]: tensor for key, tensor in stored.items() if key.partition("/")[0] == name}

        restore(self.model, group("model"))
        for number, part in enumerate(self.parts.values()):
            restore(part.modules, group(f"part{number}"))
        unpack(self.optimizer, group("optimizer"), facts["optimizer"])
        if self.judge:
            self.judge.load(facts["judge"], {name: tensor.to(self.device) for name, tensor in group("best").items()})
        if self.scaler is not None:
            self.scaler.load_state_dict(facts["scaler"])
        self.epoch, self.step = facts["epoch"], facts["step"]
        self.kept = self.epoch
        self.record.curve = [(steps, figures) for steps, figures in facts["curve"]]
        self.record.validation = [(step, figures) for step, figures in facts.get("validation", [])]
        self.context.note(f"resumed after epoch {self.epoch}")


def _training_data(stages: Sequence[TrainStage], context: Context) -> Data:
    data = context.data(stages[0].data)
    for stage in stages:
        if stage.needed().labels and context.task.needs_labels and not data.labelled:
            raise KdError(
                f"{stage.title} needs labels, and {stages[0].data} has none", "pass pairs of inputs and labels", "or learn from a teacher alone: distill soft --no-labels"
            )
    return data


def _trainable(model: nn.Module, beside: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        frozen = sum(1 for _ in model.parameters())
        raise KdError(
            f"{type(model).__name__} has no weights to train; all {frozen} are frozen" if frozen else f"{type(model).__name__} has no weights at all",
            "set requires_grad on the weights that shall train, before %kd use",
        )
    return list({id(weight): weight for weight in (*weights, *beside)}.values())


def _remedies(options: TrainStage) -> list[str]:
    hints = [f"lower the learning rate: --learning-rate {options.learning_rate / 10:g}"]
    hints += ["limit the gradient: --clip 1"] if options.clip is None else []
    hints += ["use --precision bf16 or fp32"] if options.precision == "fp16" else []
    return [*hints, "look for nan or inf in the data, and for labels out of range"]


def _windows(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while window := list(islice(batches, size)):
        yield window

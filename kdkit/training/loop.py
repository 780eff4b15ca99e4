"""The loop: one for every stage that trains, alone or together.

For each batch one forward pass, the loss terms of all parts, and one backward pass; for each window of accumulated batches one
optimizer step. The order of the data and all random numbers follow from the seed and the epoch alone, so a resumed training
equals an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import Cancelled, KdError
from kdkit.guards import explain_error
from kdkit.guards.random_state import seed_all
from kdkit.training.accelerator import autocast_for
from kdkit.training.epochs import Epochs
from kdkit.training.gradient_balance import GradientBalance, TermValue, gradient_norms
from kdkit.training.gradient_compression import GradientCompression
from kdkit.training.learning_rate import rate
from kdkit.training.loop_stage import LoopStage
from kdkit.training.loss_history import LossHistory
from kdkit.training.objective import Counts, Objective
from kdkit.training.optimizer import extra_weights, make_optimizer, set_learning_rate
from kdkit.training.options import LoopOptions
from kdkit.training.part import Step, TrainPart
from kdkit.training.precision import overflow_hints, validate_precision
from kdkit.training.training_state import Checkpoints, TrainingState
from kdkit.training.validation import EarlyStopping, validation_data
from kdkit.training.weight_choice import StepGradients, WeightChoice

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdkit.stages.context import Context


class Loop:
    """One training, from the first step to the last.

    Args:
        model: prepared, in train mode, on the accelerator's device.
        stages: the first one's loop options count.
        parts: open, by title.
    """

    def __init__(self, model: nn.Module, stages: Sequence[LoopStage], parts: Mapping[str, TrainPart], context: Context, accelerator: Accelerator):
        self.model, self.parts, self.context, self.accelerator = model, parts, context, accelerator
        self.options: LoopOptions = stages[0]
        self.task, self.device = context.task, accelerator.device
        self.rank, self.ranks, self.scaler = accelerator.process_index, accelerator.num_processes, accelerator.scaler
        self.epochs = Epochs(model, stages, self.options, parts, context, self.ranks)
        self.history = LossHistory()
        self.objective = Objective(parts, self.history)
        self.replacing = [(title, part) for title, part in parts.items() if _overrides(part, "batch")]
        self.cast = autocast_for(self.device, self.options.precision)
        self._make_optimizer()
        held_out = validation_data(self.options, context)
        self.early_stopping = EarlyStopping(self.options, context, held_out, self.device) if held_out is not None else None
        self.choice = WeightChoice(_gather if self.ranks > 1 else None)
        self.state = TrainingState(model, list(parts.values()), self.optimizer, self.scaler, self.early_stopping, self.history, self.choice)
        length = self.epochs.epoch_steps, self.epochs.steps
        self.checkpoints = Checkpoints.of(self.state, stages, self.options, length, context, accelerator.is_main_process)
        # other processes' gradients are not at hand, and a resumed training reported them when it began
        self.balanced = self.ranks > 1 or self.options.resume
        self.reported = time.monotonic()

    def _make_optimizer(self) -> None:
        self.optimizer, self.learning_rate = make_optimizer(self.options, self.model, self.parts), self.options.learning_rate
        self.weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        validate_precision(self.options, self.model, self.weights)
        self.extra_weights = extra_weights(self.parts)
        self.prepared, stepper = self.accelerator.prepare(self.model, self.optimizer)
        self.compression = GradientCompression(self.options.compress, self.rank) if self.ranks > 1 and self.options.compress != "none" else None
        if self.compression is not None:
            self.compression.attach(self.prepared)
        # accelerate's optimizer adds only the scaler, and looks for a package on disk at each step
        self.stepper = stepper if self.scaler is not None else self.optimizer

    def run(self) -> None:
        """Train to the last step, or until early stopping ends it."""
        try:
            self._run()
        except Cancelled as stop:
            if self.checkpoints.kept:
                stop.resumable = True
                stop.with_hints(f"epochs 1 to {self.checkpoints.kept} are kept: the same line with --resume continues after them")
            raise

    def _run(self) -> None:
        state = self.state
        if self.options.resume:
            self.checkpoints.resume(state, self.device)
            self.context.note(f"resumed after epoch {state.epoch}")
        while state.step < self.epochs.steps and not (self.early_stopping and self.early_stopping.stopped):
            seed_all(self.epochs.seed_of(state.epoch))
            self._run_epoch()
            state.epoch += 1
            for part in self.parts.values():
                part.after_epoch(state.epoch)
            self._report(self._validate())
            self.checkpoints.write(state)
        self._finish()

    def _validate(self) -> dict[str, float]:
        if self.early_stopping is None:
            return {}
        figures = self.early_stopping.validate(self.state.epoch, self.model)
        self.history.validation.append((self.state.step, figures))
        return figures

    def _run_epoch(self) -> None:
        for window in self.epochs.windows(self.state.epoch):
            self.context.check_cancelled()
            self._optimize(window)
            if self.state.step == self.epochs.steps:
                break

    # one step

    def _optimize(self, window: Sequence[Batch]) -> None:
        """One optimizer step over a window of batches."""
        share = window[self.rank :: self.ranks]
        steps = self.epochs.steps
        progress = self.state.step / (steps - 1) if steps > 1 else 1.0
        batches, counts = self._batches_and_counts(window, share, progress)
        measured = self.choice.begin(self._all_weights(), len(self._training_weights()), self._scale()) if len(batches) > 1 and self.ranks == 1 else None
        for number, batch in enumerate(batches, 1):
            self.epochs.check(batch)
            with self._unsynced() if number < len(share) else contextlib.nullcontext():
                step = self._backward(batch.to(self.device), counts, progress, bool(share), number == 1, measured)
        for term in self.choice.conclude(measured) if measured else ():
            self.history.add(step.index, term.name, term.value, term.weight * term.factor)
        self._update()
        self.state.step += 1
        for part in self.parts.values():
            part.after_step(step)
        if self.state.step % max(1, steps // 100) == 0 or time.monotonic() - self.reported > 1.0:
            self._report({})

    def _batches_and_counts(self, window: Sequence[Batch], share: Sequence[Batch], progress: float) -> tuple[Sequence[Batch], Counts]:
        """This process's batches, as the parts replace them, and what the whole step holds; without a batch of its own it takes the first."""
        parts = list(self.parts.values())
        batches = share or window[:1]
        if not self.replacing:
            return batches, Counts.of(window, self.task, parts)
        batches = [self._replaced(batch, progress) for batch in batches]
        mine = Counts.of(batches if share else [], self.task, parts)
        return batches, mine if self.ranks == 1 else Counts.total(_gather([mine]))

    def _replaced(self, batch: Batch, progress: float) -> Batch:
        """A batch on the device, after the `batch` of each part; without item numbers where one replaced it."""
        given = batch.to(self.device)
        made = given
        with self.cast:
            for title, part in self.replacing:
                made = part.batch(made, self.model, progress)
                if not isinstance(made, Batch) or not made.size:
                    raise KdError(f"{title}: batch returned {'an empty batch' if isinstance(made, Batch) else type(made).__name__}", "return a kdkit.Batch with items")
        return made if made is given else replace(made, numbers=None)

    def _backward(self, batch: Batch, counts: Counts, progress: float, counted: bool, first: bool, measured: StepGradients | None) -> Step:
        try:
            output = self.task.training_batch(batch, self.model).call(self.prepared)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise KdError("batch norm can't train on a batch of one item", "use a larger --batch-size") from error
            raise
        step = Step(batch, output, self.model, self.task, self.state.step, progress)
        with self.cast:
            terms = self.objective.terms(step, counts)
        if first and measured is None and self.choice.is_open(terms):
            self.choice.measure(terms, self._training_weights(), self._scale())
        if not self.balanced:
            self._balance(self._predicted(terms) if measured else self.choice.applied(terms), counts.items / batch.size)
        self.balanced = True
        terms = self.choice.applied(terms) if measured is None else self.choice.hold_back(measured, terms)
        with self.cast:
            loss = self.objective.loss(step, terms)
        # gradients are averaged over processes, and the loss is a sum over them; a process without a batch only keeps step
        factor = self.ranks if counted else 0
        loss = loss if factor == 1 else loss * factor
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return step

    def _predicted(self, terms: list[TermValue]) -> list[TermValue]:
        """The terms with the factors that the first batch alone would give, where those of the whole step are not known yet."""
        choice = WeightChoice()
        choice.measure(terms, self._training_weights(), self._scale())
        return choice.applied(terms)

    def _balance(self, terms: list[TermValue], batches: float) -> None:
        """Report the gradient norm of each of several terms; `batches` of this one's size make the step."""
        if len({term.name for term in terms}) < 2:
            return
        whole = [replace(term, value=term.value * batches) for term in terms] if batches != 1 else terms
        try:
            norms = gradient_norms(whole, self._training_weights(), self._scale())
        except (KdError, RuntimeError) as error:
            # such as too little memory, or checkpointing that allows only one backward pass; the training itself may work
            self.context.note(f"the terms' gradients at the first step could not be computed: {explain_error(error)}")
            return
        if len(norms) < 2:
            return
        factors = {term.name: term.factor for term in terms}
        balance = GradientBalance(norms, lambda name, factor, other: self.objective.option_for_weight(name, factor * factors[name], other))
        self.context.attach(balance)
        self.context.note(balance.note)
        if balance.warning:
            self.context.note(balance.warning)

    def _training_weights(self) -> list[nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def _all_weights(self) -> list[nn.Parameter]:
        """Those of the model, then those of the parts' modules."""
        mine = self._training_weights()
        return mine + [weight for weight in self.extra_weights if weight.requires_grad]

    def _scale(self) -> float:
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def _update(self) -> None:
        if self.ranks > 1:
            for weight in self.extra_weights:
                weight.grad = None if weight.grad is None else self.accelerator.reduce(weight.grad, "mean")
        if self.options.clip is not None:
            self.accelerator.clip_grad_norm_(self.weights, self.options.clip)
        self.learning_rate = self.options.learning_rate * rate(self.options.schedule, self.state.step, self.epochs.steps, self.options.warmup)
        set_learning_rate(self.optimizer, self.learning_rate)
        self.stepper.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _unsynced(self) -> contextlib.AbstractContextManager:
        return self.accelerator.no_sync(self.prepared) if self.ranks > 1 else contextlib.nullcontext()

    # reporting

    def _report(self, figures: dict[str, float]) -> None:
        """Read the terms from the device, and report progress."""
        try:
            losses = self.history.flush()
        except KdError as error:
            causes = [hint for part in self.parts.values() for hint in part.diagnose()]
            raise error.with_hints(*overflow_hints(self.model.parameters()), *(causes or _remedies(self.options))) from None
        self.reported = time.monotonic()
        count, state = self.epochs.count(), self.state
        text = f"epoch {min(state.epoch + 1, count)} of {count}"
        self.context.progress(state.step, self.epochs.steps, text, **losses, **figures, learning_rate=self.learning_rate)

    def _finish(self) -> None:
        if self.early_stopping:
            self.early_stopping.finish(self.model)
            if self.early_stopping.stopped:
                self.context.note(f"stopped after epoch {self.state.epoch}: {self.early_stopping.waited} without a better {self.task.metric}")
        broken = [name for name, weight in self.model.named_parameters() if weight.requires_grad and not torch.isfinite(weight).all()]
        if broken:
            raise KdError(f"after {self.state.step} steps the weights of {broken[0]} are not finite", *overflow_hints(self.model.parameters()), *_remedies(self.options))
        sent = self.compression.note() if self.compression is not None else ""
        for note in (self.epochs.note(), *self.choice.notes(), sent):
            if note:
                self.context.note(note)
        if summary := self.history.summary():
            self.context.note(f"{summary} in {self.state.step} steps")
            self.context.attach(self.history.as_curve())
        self.checkpoints.finish()


def _gather(objects: list[Any]) -> list[Any]:
    """The objects of all processes."""
    from accelerate.utils import gather_object

    return gather_object(objects)


def _overrides(part: TrainPart, method: str) -> bool:
    return getattr(type(part), method) is not getattr(TrainPart, method) or method in vars(part)


def _remedies(options: LoopOptions) -> list[str]:
    hints = [f"lower the learning rate: --learning-rate {options.learning_rate / 10:g}"]
    hints += ["limit the gradient: --clip 1"] if options.clip is None else []
    hints += ["use --precision bf16 or fp32"] if options.precision == "fp16" else []
    return [*hints, "look for nan or inf in the data, and for labels out of range"]

"""Conformance checks of what a stage does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from kdkit.errors import Cancelled, KdError, did_you_mean
from kdkit.measurement.macs import count_macs
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.traits import SEEN, Trait, traits_of, uncertain_after
from kdkit.pipelines.order import after
from kdkit.plugins.manager import manager
from kdkit.session.verification import output_faults, trait_faults, unchanged, value_fault
from kdkit.stages.stage import Forecast
from kdkit.testing.check import Found, check, describe_failure, same
from kdkit.testing.fingerprint import changes, fingerprint, in_short, outputs
from kdkit.testing.subprocesses import restored
from kdkit.testing.trial import Case, Run, Trial

CANCEL_S = 1.0
"""How long a cancelled stage may take to stop."""
TOLERANCE = 0.1
"""Relative error allowed for `size_bytes` and `macs_ratio` of a forecast, which the structure alone does not determine."""
BESIDE_WEIGHTS_BYTES = 2000
"""Bytes that a file may hold besides the weights; a forecast need not include them."""


@check(
    "it leaves all else as it was, whether it succeeds, fails or is interrupted: other models, data, torch's classes, settings of the process, files, stdout, memory",
    "change only the copy that apply receives, and keep no reference to it; use teachers within `with context.teacher() as teacher:`; restore settings in a finally "
    "block; put hooks on modules of the copy, not on classes; write files to context.scratch; report with context.progress and context.note instead of print",
)
def untouched(case: Case) -> Found:
    for trial in case.begun:
        if trial in case.whole:
            _ = trial.forecast
        if trial in case.lead:
            _ = trial.broken_off, trial.cancelled
            if place := trial.held:
                yield f"keeps the model in memory after its run: {place} holds it", trial.name
        yield from ((what, trial.name) for what in dict.fromkeys(trial.touched))


@check(
    "run again with the same seed, it makes the same model bit for bit, and the stage itself does not change",
    "use the global generators of torch, numpy or random, which kdkit seeds; keep no state of a run in the class or the stage",
)
def repeats(case: Case) -> Found:
    for trial in case.ends:
        if not isinstance(trial.second.made, nn.Module):
            yield f"the second run raises {describe_failure(trial.second.error, trial.stage)}", trial.name
        elif places := changes(trial.print, fingerprint(trial.second.made)):
            yield f"a second run differs in {in_short(places)}", trial.name


@check(
    "the stage and its model can be copied, and the copy is equal and shares nothing",
    "keep weights as leaf nn.Parameters, and locks, generators and open files out of modules and stages",
)
def copies(case: Case) -> Found:
    try:
        if not same(copy.deepcopy(case.stage), case.stage):
            yield "a copy of the stage is another stage", ""
    except Exception as error:
        yield f"the stage can't be copied: {describe_failure(error, case.stage)}", ""
    for trial in case.whole:
        try:
            twin = copy.deepcopy(trial.made)
        except Exception as error:
            yield f"the model can't be copied: {describe_failure(error, trial.stage)}", trial.name
            continue
        if places := changes(trial.print, fingerprint(twin)):
            yield f"a copy of the model differs in {in_short(places)}", trial.name
        elif trial.outputs is not None and outputs(twin, trial.batch) != trial.outputs:
            yield "a copy of the model gives other outputs", trial.name


@check(
    "the model has exactly the traits that the stage declares, and parameters that are frozen only if it declares that too",
    "declare in adds and removes what the stage does to the model's traits (kdkit.Trait lists them); restore requires_grad, or declare freezes = True",
)
def traits(case: Case) -> Found:
    known = set(Trait) | {str(trait) for stage in manager().stages().values() for trait in stage.adds if stage is not case.kind} | set(case.stage.adds)
    for fact in ("requires", "forbids", "removes"):
        for word in sorted(set(getattr(case.stage, fact)) - known):
            yield f"{fact} names {word!r}, which nothing adds; {did_you_mean(word, known) or 'traits: ' + ', '.join(sorted(known))}", ""
    for trait in sorted(set(case.stage.adds) & set(case.stage.removes)):
        yield f"adds and removes {trait!r}", ""
    for trial in case.whole:
        uncertain = uncertain_after(case.stage.adds, trial.setup.traits) - _wrong_everywhere(case)
        for what in trait_faults((after(case.stage, trial.setup.traits) & SEEN) - uncertain, traits_of(trial.made) - uncertain):
            yield what, trial.name
        if frozen := _frozen(trial):
            yield f"froze {in_short(frozen)} without declaring it", trial.name


def _wrong_everywhere(case: Case) -> frozenset[str]:
    """The traits of which the declaration is true on no model: none that the stage may leave or take, depending on the model, is among them."""
    wrong = [(after(case.stage, trial.setup.traits) & SEEN) ^ traits_of(trial.made) for trial in case.whole]
    return frozenset.intersection(*wrong) if len(wrong) > 1 else frozenset()


def _frozen(trial: Trial) -> list[str]:
    """The parameters that the stage froze, unless it declares that."""
    if trial.stage.freezes or Trait.ADAPTERS_ATTACHED in trial.stage.adds:
        return []
    trained = {name for name, weight in trial.setup.model.named_parameters() if weight.requires_grad}
    return [name for name, weight in trial.made.named_parameters() if name in trained and weight.is_floating_point() and not weight.requires_grad]


@check(
    "its forecast predicts the parameters, bytes and MACs of the result, and a model that reports its own size reports it correctly",
    "let forecast(model, context) return the structure that apply makes; define kdkit_parameters, kdkit_size_bytes and kdkit_macs only on models without tensors",
)
def figures(case: Case) -> Found:
    for trial in case.whole:
        if trial.outputs is None:
            continue
        predicted = trial.forecast
        if not isinstance(predicted, Forecast):
            raised = isinstance(predicted, Exception)
            yield f"its forecast {f'raises {describe_failure(predicted, trial.stage)}' if raised else f'returns {type(predicted).__name__}, not a Forecast'}", trial.name
            continue
        yield from ((what, trial.name) for what in _wrong_forecast(trial, predicted))
        yield from ((what, trial.name) for what in _wrong_own_figures(trial))


def _wrong_forecast(trial: Trial, predicted: Forecast) -> Iterator[str]:
    batch = trial.batch[:1]
    size = size_bytes(predicted.model) if predicted.size_bytes is None else predicted.size_bytes
    macs = count_macs(predicted.model, batch) * (1 if predicted.macs_ratio is None else predicted.macs_ratio)
    rows = (
        ("parameters", count_parameters(predicted.model), count_parameters(trial.made), False, 0),
        ("bytes", size, size_bytes(trial.made), predicted.size_bytes is not None, BESIDE_WEIGHTS_BYTES),
        ("MACs", macs, count_macs(trial.made, batch), predicted.macs_ratio is not None, 0),
    )
    for figure, forecast, counted, estimated, beside in rows:
        if abs(forecast - counted) > estimated * max(TOLERANCE * counted, beside):
            yield f"its forecast predicts {forecast:,.0f} {figure}, and the result has {counted:,}"


def _wrong_own_figures(trial: Trial) -> Iterator[str]:
    """Figures that a model made of tensors reports about itself and that its tensors contradict."""
    inner = _Wrapped(trial.made)
    for figure, answer, count in (
        ("parameters", "kdkit_parameters", count_parameters),
        ("bytes", "kdkit_size_bytes", size_bytes),
        ("MACs", "kdkit_macs", lambda model: count_macs(model, trial.batch)),
    ):
        if hasattr(trial.made, answer):
            reported, counted = count(trial.made), count(inner)
            if counted and reported != counted:
                yield f"its model reports {reported:,} {figure}, and its tensors have {counted:,}"


class _Wrapped(nn.Module):
    """A model without its own `kdkit_*` figures."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


@check(
    "the model is called as before, gives outputs of the same shape, finite where they were finite, and differs from the original",
    "return a model, or None for the copy; keep forward's signature and outputs; declare keeps_output or keeps_values = False, or may_change_nothing = True",
)
def output(case: Case) -> Found:
    for trial in case.trials:
        made, parent = trial.first.made, trial.setup.model
        if trial.first.error is None and not isinstance(made, nn.Module):
            yield f"it returned {type(made).__name__} instead of a model", trial.name
        elif isinstance(made, nn.Module):
            if not case.stage.may_change_nothing and unchanged(made, parent):
                yield "it changed nothing", trial.name
            yield from ((what, trial.name) for what in _wrong_outputs(trial))


def _wrong_outputs(trial: Trial) -> Iterator[str]:
    task = trial.setup.session.task
    assert task is not None  # the zoo has data
    try:
        yield from (fault for fault, _ in output_faults(trial.stage, trial.made, trial.setup.model, task, trial.batch))
    except KdError as error:
        yield f"its outputs can't be read: {error.message}"
        return
    if trial.stage.keeps_values and (fault := value_fault(trial.made, trial.setup.model, trial.batch)):
        yield f"it declares keeps_values, and {fault}"


@check(
    "once saved, a process that never ran the stage restores it bit for bit",
    "keep a module's state in parameters, buffers and plain attributes; define your own classes in the plugin's package; leave no hooks, lambdas or locks on modules",
)
def restores(case: Case) -> Found:
    for trial in case.whole:
        folder, reason = trial.saved
        if folder is None:
            yield f"it can't be saved: {reason}", trial.name
            continue
        found = restored(str(folder), trial.name, call=trial.outputs is not None)
        if error := found.get("error"):
            yield f"it can't be restored: {error}", trial.name
        elif places := changes(trial.print, found["print"]):
            yield f"restored, it differs in {in_short(places)}", trial.name
        elif trial.outputs is not None and found["outputs"] != trial.outputs:
            yield "restored, it gives other outputs", trial.name


@check(
    f"once cancelled, it stops within {CANCEL_S:g} s, and lets Cancelled and KeyboardInterrupt propagate",
    "call context.progress or context.check_cancelled in every loop; catch Exception types by name, and never Cancelled or KeyboardInterrupt",
)
def cancels(case: Case) -> Found:
    for trial in case.lead:
        longest = min(run.longest_s for run in _until_quick(trial))
        if longest > CANCEL_S:
            yield f"it could not be cancelled for {longest:.2g} s", trial.name
        cancelled = trial.cancelled
        if len(cancelled.looks) > 2 and not isinstance(cancelled.error, Cancelled):
            yield f"it was cancelled, and {f'raised {describe_failure(cancelled.error, trial.stage)}' if cancelled.error else 'went on to its end'}", trial.name
        for run in trial.broken_off[1:]:
            if run.stopped and (run.error is None or (isinstance(run.error, Exception) and not isinstance(run.error, KdError))):
                yield f"it was interrupted, and {f'raised {describe_failure(run.error, trial.stage)}' if run.error else 'went on to its end'}", trial.name


def _until_quick(trial: Trial) -> Iterator[Run]:
    """Run until one run could be cancelled in time: the first may have loaded packages, and other processes may use the machine."""
    for run in (lambda: trial.first, lambda: trial.second, *2 * [lambda: trial.run("when it succeeds")]):
        done = run()
        yield done
        if done.longest_s <= CANCEL_S:
            return


@check(
    "it runs on a model of the zoo, and refuses models that do not suit it with a KdError",
    "inspect the model in check() and yield what does not suit; raise KdError(message, hint) in apply for what shows only there",
)
def runs(case: Case) -> Found:
    for trial in case.trials:
        if trial.first.error is not None:
            yield f"it raises {describe_failure(trial.first.error, trial.stage)}", trial.name
    if not case.trials:
        yield f"it refuses every model: {in_short([f'{name}: {reason}' for name, reason in case.refused.items()], 2)}", ""

"""The checks: each a rule that every stage keeps, and the small function that finds where it is broken.

A check yields (what is wrong, name of the model it was seen on); nothing where the rule is kept. Each looks for its own kind of
fault alone: where a fault of another kind makes its question meaningless, it passes.
"""

from __future__ import annotations

import copy
import doctest
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from torch import nn

from kdkit.checks import output_faults, trait_faults, unchanged
from kdkit.contract import Forecast, Stage, Trait, faults
from kdkit.counting import count_macs, count_parameters, size_bytes
from kdkit.errors import Cancelled, KdError, did_you_mean
from kdkit.lines import kind, option, split
from kdkit.models import SEEN, traits_of
from kdkit.notebook.grammar import verbs
from kdkit.objects import Objects
from kdkit.pipeline import Pipeline, after, read_stage
from kdkit.places import raised_at
from kdkit.plugins import manager
from kdkit.testing import samples
from kdkit.testing.bench import each_need
from kdkit.testing.fingerprint import changes, fingerprint, in_short, outputs
from kdkit.testing.fresh import load_time, restored
from kdkit.testing.imports import at_load, hidden, is_foreign
from kdkit.testing.interruption import belongs
from kdkit.testing.trial import Case, Run, Trial, home_of

Found = Iterator[tuple[str, str]]
"""(what is wrong, name of the model it was seen on, if on any)."""

LOAD_S = 0.3
"""The longest that a stage's module may take to load, beyond torch and kdkit."""
CANCEL_S = 1.0
"""The longest that a cancelled stage may take to stop."""
TOLERANCE = 0.1
"""The share by which a forecast's own word for bytes, and for MACs, may be off where the structure alone does not tell them."""
BESIDE_WEIGHTS_BYTES = 2000
"""What a file may hold besides weights, and a forecast need not know."""


@dataclass(frozen=True)
class Check:
    """One rule.

    Attributes:
        name: of the rule.
        holds: what is true of a stage that keeps it.
        mend: how to mend what breaks it.
        find: yields where it is broken.
    """

    name: str
    holds: str
    mend: str
    find: Callable[[Case], Found]


CHECKS: list[Check] = []
"""Every check, in the order in which reports show them."""


def check(holds: str, mend: str) -> Callable[[Callable[[Case], Found]], Check]:
    """Make a function a check, named as it is."""

    def enlist(find: Callable[[Case], Found]) -> Check:
        CHECKS.append(Check(find.__name__, holds, mend, find))
        return CHECKS[-1]

    return enlist


# what it declares


@check(
    "its class is whole: a docstring, and help, type, bounds and a default for every parameter",
    "declare each parameter as name: type = param(default, help, ge=..., le=...); a number that may be anything has a unit=",
)
def schema(case: Case) -> Found:
    yield from ((fault, "") for fault in _schema_faults(case.kind))


def untriable(stage: type[Stage]) -> Iterator[str]:
    """What keeps a stage from being tried at all, a line each."""
    yield from faults(stage)
    for name, field_info in stage.model_fields.items() if issubclass(stage, Stage) else ():
        if field_info.is_required() and not (field_info.json_schema_extra or {}).get("refers"):  # type: ignore[union-attr]
            yield f"{option(name)} has no default, and names no object of the session"


def _schema_faults(stage: type[Stage]) -> Iterator[str]:
    """What a stage's declaration lacks, a line each."""
    yield from untriable(stage)
    if stage.id.partition(".")[0] in verbs():
        yield f"family {stage.id.partition('.')[0]} is a verb of %kd, which would be heard instead; choose another"
    for name, field_info in stage.model_fields.items():
        this, limits, extra = kind(stage, name), samples.bounds(stage, name), field_info.json_schema_extra
        extra = extra if isinstance(extra, dict) else {}
        if this.base in (int, float) and not (this.choices or this.many or limits or extra.get("unit")):
            yield f"{option(name)} is a number without bounds"
        tried: Any = extra.get("search") or ()
        outside = [value for value in tried if (this.choices and value not in this.choices) or (isinstance(value, int | float) and not _within(value, limits))]
        if outside:
            yield f"{option(name)}: its search goes to {outside[0]}, which its own bounds rule out"


def _within(value: float, limits: Mapping[str, float]) -> bool:
    return all({"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}[word] for word, bound in limits.items())


@check(
    f"its module loads within {LOAD_S} s of torch and kdkit",
    "import heavier packages in apply, and for type checkers under TYPE_CHECKING",
)
def loads(case: Case) -> Found:
    if case.kind.__module__ in ("__main__", "builtins") or case.kind.__module__.startswith("kdkit."):
        return
    found = load_time(case.kind.__module__)
    if found.get("error"):
        yield f"{case.kind.__module__} can't be loaded in a fresh process: {found['error']}", ""
    elif found["seconds"] > LOAD_S:
        yield f"{case.kind.__module__} takes {found['seconds']:.2g} s to load{'; it brings ' + in_short(found['packages'], 5) if found['packages'] else ''}", ""


def as_line(stage: Stage) -> Stage:
    """Through the `%kd` line."""
    return read_stage(split(stage.line()))


def as_recipe(stage: Stage) -> Stage:
    """Through a recipe's YAML."""
    return Pipeline.from_data(yaml.load(yaml.dump(Pipeline((stage,)).data(), Dumper=_DUMPER), _LOADER)).stages[0]


def as_form(stage: Stage) -> Stage:
    """Through the wizard's form."""
    shown = _form(type(stage))
    shown.fill(stage.changed())
    return type(stage).build(stage.title, shown.values())


@functools.cache
def _form(kind: type[Stage]) -> Any:
    """The form of a stage, with what the stage itself offers."""
    from kdkit.notebook.wizard.form import Form

    return Form(kind, lambda settings, name: list(settings.offers(name)))


# of the same YAML, and where libyaml is there eight times as fast
_DUMPER, _LOADER = getattr(yaml, "CSafeDumper", yaml.SafeDumper), getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def lost(case: Case, through: Callable[[Stage], Stage]) -> Iterator[str]:
    """The values that do not come back the same from where the stage is written down."""
    for name, value in [("", None), *samples.good(case.stage)]:
        try:
            stage = samples.with_value(case.stage, name, value) if name else case.stage
        except Exception:  # parameters that exclude one another; how it says so is for `messages`
            continue
        try:
            again = through(stage)
        except Exception as error:
            yield f"{_shown(name, value)} can't be read back: {_first_line(error)}"
            continue
        if not same(again, stage):
            yield f"{_shown(name, value)} comes back as {_shown(name, getattr(again, name, None)) if name else repr(again)}"


def same(one: Stage, other: Stage) -> bool:
    """Whether two stages are of one class with equal parameters."""
    return type(one) is type(other) and dict(one) == dict(other)


def _shown(name: str, value: Any) -> str:
    return f"{option(name)} {value!r}" if name else "the stage with its defaults"


@check(
    "written as a %kd line and read again, it is the same", "leave line() to the kit, and let validators return what they were given, or the same for what they return"
)
def line(case: Case) -> Found:
    yield from ((what, "") for what in lost(case, as_line))


@check("written to a recipe and read again, it is the same", "let validators take a list where the field is a tuple, and return the same for what they return")
def recipe(case: Case) -> Found:
    yield from ((what, "") for what in lost(case, as_recipe))


@check("shown in a form and read from it again, it is the same", "let offers() return a list of texts; declare what a field holds by its type and by refers")
def form(case: Case) -> Found:
    yield from ((what, "") for what in lost(case, as_form))


@check(
    "a wrong value is refused by a KdError that names the option",
    "declare bounds with param; raise ValueError in validators; let check() yield a line for what can't be, and refuse a pattern that means no layer",
)
def messages(case: Case) -> Found:
    for name, value in samples.bad(case.kind):
        yield from ((what, "") for what in _refusal(case, name, value))
    for name, value in samples.good(case.stage):
        try:
            stage = samples.with_value(case.stage, name, value)
        except KdError:
            continue
        except Exception as error:
            yield f"{_shown(name, value)} raises {_said(error, case.stage)}", ""
            continue
        for trial in case.lead:
            if raised := _raised_by_check(stage, trial):
                yield f"{_shown(name, value)}: its check raises {_said(raised, case.stage)}", trial.name
    for trial in case.lead:
        yield from ((what, trial.name) for name in samples.layer_options(case.kind) for what in _absent_layer(trial, name))


def _refusal(case: Case, name: str, value: Any) -> Iterator[str]:
    try:
        samples.with_value(case.stage, name, value)
    except KdError as error:
        if option(name) not in str(error):
            yield f"{_shown(name, value)} is refused without the option's name: {error.message}"
    except Exception as error:
        yield f"{_shown(name, value)} raises {_said(error, case.stage)}"
    else:
        yield f"{_shown(name, value)} is taken, although its declaration rules it out"


def _raised_by_check(stage: Stage, trial: Trial) -> Exception | None:
    try:
        list(stage.check(trial.bench.model, trial.bench.context(stage)))
    except KdError:
        return None
    except Exception as error:
        return error
    return None


def _absent_layer(trial: Trial, name: str) -> Iterator[str]:
    value = (samples.ABSENT_LAYER,) if kind(type(trial.stage), name).many else samples.ABSENT_LAYER
    try:
        stage = samples.with_value(trial.stage, name, value)
        if list(stage.check(trial.bench.model, trial.bench.context(stage))):
            return
    except Exception:  # told above
        return
    run = trial.run("with a pattern that means no layer", stage=stage)
    if run.error is None:
        yield f"{_shown(name, value)} means no layer, and is not refused"
    elif not isinstance(run.error, KdError):
        yield f"{_shown(name, value)} means no layer, and raises {_said(run.error, trial.stage)}"


@check(
    "the examples in its docstring run, and so does the line that its help shows",
    "mend the docstring's example; set sample_options to what an honest trial of the technique says beside its first option",
)
def example(case: Case) -> Found:
    yield from ((what, "") for what in _docstring(case.kind))
    try:
        stage = samples.in_help(case.kind)
    except KdError as error:
        yield f"its line in help can't be read: {error.message}", ""
        return
    for trial in [] if case.kind.tried_as else case.lead:  # else the zoo does not suit it
        run = trial.run("in the line of its help", stage=stage) if not same(stage, case.stage) else trial.first
        if run.error is not None:
            yield f"its line in help, {stage.line()!r}, raises {_said(run.error, case.stage)}", trial.name


def _docstring(stage: type[Stage]) -> Iterator[str]:
    text = inspect.getdoc(stage) or ""
    for row in text.splitlines():
        words = row.strip().removeprefix("%kd ")
        if words != row.strip() and words.startswith(stage.id.replace(".", " ", 1)):
            try:
                samples.of_line(stage, words)
            except KdError as error:
                yield f"{row.strip()!r} in its docstring: {error.message}"
    test = doctest.DocTestParser().get_doctest(text, dict(vars(sys.modules.get(stage.__module__, sys))), stage.__qualname__, None, None)
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=told.append)
    if told:
        yield "its docstring's example fails: " + " ".join("".join(told).split("Failed example:")[-1].split())


# what it does


@check(
    "it leaves alone what is not its own: the model it was given, other models of the session, data, and torch's switches, whether it succeeds, fails or is interrupted",
    "change the copy that apply is handed alone; use teachers within `with context.teacher() as teacher:`, which puts modes back; put switches back in a finally",
)
def untouched(case: Case) -> Found:
    for trial in case.begun:
        if trial in case.whole:
            _ = trial.forecast
        if trial in case.lead:
            _ = trial.broken_off, trial.cancelled
        yield from ((what, trial.name) for what in dict.fromkeys(trial.touched))


@check(
    "run again with the same seed, it makes the same model to the bit, and the stage itself does not change",
    "draw from torch's, numpy's or random's own generators, which the kit seeds; keep what one run learns out of the class and the stage",
)
def repeats(case: Case) -> Found:
    for trial in case.ends:
        if not isinstance(trial.second.made, nn.Module):
            yield f"the second run raises {_said(trial.second.error, trial.stage)}", trial.name
        elif places := changes(trial.print, fingerprint(trial.second.made)):
            yield f"a second run differs in {in_short(places)}", trial.name


@check(
    "the stage and the model it makes can be copied, and the copy is the same and shares nothing",
    "keep weights as leaf nn.Parameters, and locks, generators and open files out of modules and stages",
)
def copies(case: Case) -> Found:
    try:
        if not same(copy.deepcopy(case.stage), case.stage):
            yield "a copy of the stage is another stage", ""
    except Exception as error:
        yield f"the stage can't be copied: {_said(error, case.stage)}", ""
    for trial in case.whole:
        try:
            twin = copy.deepcopy(trial.made)
        except Exception as error:
            yield f"the model can't be copied: {_said(error, trial.stage)}", trial.name
            continue
        if places := changes(trial.print, fingerprint(twin)):
            yield f"a copy of the model differs in {in_short(places)}", trial.name
        elif trial.outputs is not None and outputs(twin, trial.batch) != trial.outputs:
            yield "a copy of the model gives other outputs", trial.name


@check(
    "the model has the traits that the stage declares, and those alone",
    "declare in adds and removes what the stage does to the model's traits; kdkit.Trait lists the words",
)
def traits(case: Case) -> Found:
    known = set(Trait) | {str(trait) for stage in manager().stages().values() for trait in stage.adds if stage is not case.kind} | set(case.stage.adds)
    for fact in ("requires", "forbids", "removes"):
        for word in sorted(set(getattr(case.stage, fact)) - known):
            yield f"{fact} names {word!r}, which nothing adds; {did_you_mean(word, known) or 'traits: ' + ', '.join(sorted(known))}", ""
    for trait in sorted(set(case.stage.adds) & set(case.stage.removes)):
        yield f"adds and removes {trait!r}", ""
    for trial in case.whole:
        claimed = after(case.stage, trial.bench.traits) & SEEN
        for what in trait_faults(claimed, traits_of(trial.made)):
            yield what, trial.name


@check(
    "its forecast tells the parameters, bytes and MACs that come out, and what a model says of its own size is so",
    "let forecast(model, context) return the structure that apply makes; leave kdkit_parameters, kdkit_size_bytes and kdkit_macs to models not made of tensors",
)
def figures(case: Case) -> Found:
    for trial in case.whole:
        if trial.outputs is None:
            continue
        told = trial.forecast
        if not isinstance(told, Forecast):
            yield f"its forecast {f'raises {_said(told, trial.stage)}' if isinstance(told, Exception) else f'returns {type(told).__name__}, not a Forecast'}", trial.name
            continue
        yield from ((what, trial.name) for what in _misjudged(trial, told))
        yield from ((what, trial.name) for what in _false_of_itself(trial))


def _misjudged(trial: Trial, told: Forecast) -> Iterator[str]:
    batch = trial.batch[:1]
    size = size_bytes(told.model) if told.size_bytes is None else told.size_bytes
    macs = count_macs(told.model, batch) * (1 if told.macs_ratio is None else told.macs_ratio)
    rows = (
        ("parameters", count_parameters(told.model), count_parameters(trial.made), False, 0),
        ("bytes", size, size_bytes(trial.made), told.size_bytes is not None, BESIDE_WEIGHTS_BYTES),
        ("MACs", macs, count_macs(trial.made, batch), told.macs_ratio is not None, 0),
    )
    for figure, foreseen, counted, by_word, beside in rows:
        if abs(foreseen - counted) > by_word * max(TOLERANCE * counted, beside):
            yield f"its forecast says {foreseen:,.0f} {figure}, and {counted:,} come out"


def _false_of_itself(trial: Trial) -> Iterator[str]:
    """What a model made of tensors says of itself, other than its tensors do."""
    inner = _Wrapped(trial.made)
    for figure, answer, count in (
        ("parameters", "kdkit_parameters", count_parameters),
        ("bytes", "kdkit_size_bytes", size_bytes),
        ("MACs", "kdkit_macs", lambda model: count_macs(model, trial.batch)),
    ):
        if hasattr(trial.made, answer):
            said, counted = count(trial.made), count(inner)
            if counted and said != counted:
                yield f"its model says that it has {said:,} {figure}, and its tensors have {counted:,}"


class _Wrapped(nn.Module):
    """A model without what it says of itself."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


@check(
    "the model is called as before and gives outputs of the same shape, finite where they were, and is not as it was before",
    "return a model, or nothing for the copy; keep forward's signature and outputs; declare keeps_output = False or may_change_nothing = True where that is meant",
)
def output(case: Case) -> Found:
    for trial in case.trials:
        made, parent = trial.first.made, trial.bench.model
        if trial.first.error is None and not isinstance(made, nn.Module):
            yield f"it returned {type(made).__name__} instead of a model", trial.name
        elif isinstance(made, nn.Module):
            if not case.stage.may_change_nothing and unchanged(made, parent):
                yield "it changed nothing", trial.name
            yield from ((what, trial.name) for what in _wrong_outputs(trial))


def _wrong_outputs(trial: Trial) -> Iterator[str]:
    task = trial.bench.session.task
    assert task is not None  # the zoo has data
    try:
        yield from (fault for fault, _ in output_faults(trial.stage, trial.made, trial.bench.model, task, trial.batch))
    except KdError as error:
        yield f"its outputs can't be read: {error.message}"


@check(
    "saved, it is restored to the bit by a process that never ran the stage",
    "keep a module's state in parameters, buffers and plain attributes; put classes of your own into the plugin's package; leave no hooks, lambdas or locks on modules",
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
    f"asked to cancel, it stops within {CANCEL_S:g} s, and lets Cancelled and KeyboardInterrupt through",
    "call context.progress or context.check_cancelled in every loop; catch Exception types by name, and never Cancelled or KeyboardInterrupt",
)
def cancels(case: Case) -> Found:
    for trial in case.lead:
        longest = min(run.longest_s for run in _until_quick(trial))
        if longest > CANCEL_S:
            yield f"it could not be cancelled for {longest:.2g} s", trial.name
        cancelled = trial.cancelled
        if len(cancelled.looks) > 2 and not isinstance(cancelled.error, Cancelled):
            yield f"it was cancelled, and {f'raised {_said(cancelled.error, trial.stage)}' if cancelled.error else 'went on to its end'}", trial.name
        for run in trial.broken_off[1:]:
            if run.stopped and (run.error is None or (isinstance(run.error, Exception) and not isinstance(run.error, KdError))):
                yield f"it was interrupted, and {f'raised {_said(run.error, trial.stage)}' if run.error else 'went on to its end'}", trial.name


def _until_quick(trial: Trial) -> Iterator[Run]:
    """Runs until one could be cancelled in time: the first may have loaded packages, and others may use the machine."""
    for run in (lambda: trial.first, lambda: trial.second, *2 * [lambda: trial.run("when it succeeds")]):
        done = run()
        yield done
        if done.longest_s <= CANCEL_S:
            return


@check(
    "it needs what it declares and no more: given just that it runs, and without any of it it says so",
    "declare in needs (or needed(), where parameters decide) what apply asks of the context, and the packages it imports; leave out the rest",
)
def needs(case: Case) -> Found:
    for trial in case.lead:
        yield from ((what, trial.name) for what in (*_undeclared_objects(trial), *_undeclared_packages(trial), *_idle_packages(trial), *_idle_needs(trial)))


def _undeclared_objects(trial: Trial) -> Iterator[str]:
    run = trial.run("given what it declares", objects=trial.bench.objects(trial.stage))
    if run.error is not None:
        yield f"given just what it declares ({', '.join(trial.stage.needed().names()) or 'nothing'}), it raises {_said(run.error, trial.stage)}"


def _undeclared_packages(trial: Trial) -> Iterator[str]:
    stage, home = type(trial.stage), home_of(type(trial.stage))
    asked = {package for package, modules in trial.first.imports.items() if any(belongs(module, home) for module in modules)} | at_load(stage.__module__)
    of_model = {type(module).__module__.partition(".")[0] for module in trial.bench.model.modules()}
    for package in sorted(asked - set(trial.stage.needed().packages) - of_model - {home.partition(".")[0]}):
        if is_foreign(package):
            yield f"it imports {package}, which its needs do not declare"


def _idle_packages(trial: Trial) -> Iterator[str]:
    for package in trial.stage.needed().packages:
        if package not in trial.first.imports and package not in at_load(type(trial.stage).__module__):
            yield f"it declares the package {package}, and never imports it"


def _idle_needs(trial: Trial) -> Iterator[str]:
    """What is declared, and makes no difference, or is missed in another way than by a `KdError`."""
    for need in each_need(trial.stage.needed()):
        objects = trial.bench.objects(trial.stage, without=need)
        run = trial.run(f"without {need}", objects=objects)
        if run.error is None and isinstance(run.made, nn.Module) and not changes(trial.print, fingerprint(run.made)):
            yield f"it declares {need}, and does the same without"
        elif run.error is not None and not isinstance(run.error, KdError) and not _refused(trial, objects):
            yield f"without {need} it raises {_said(run.error, trial.stage)}, not a KdError"
    for package in trial.stage.needed().packages:
        with hidden(package):
            if not _refused(trial, trial.bench.session.objects):
                yield f"without the package {package} it is not refused"


def _refused(trial: Trial, objects: Objects) -> bool:
    """Whether the kit refuses the stage with these objects, before any work."""
    try:
        objects.check(trial.stage, trial.bench.session.task)
    except KdError:
        return True
    return False


@check(
    "it runs on a model of the zoo, and refuses those that it does not fit by a KdError",
    "look at the model in check() and yield what does not fit; raise KdError(message, hint) where it shows only in the work",
)
def runs(case: Case) -> Found:
    for trial in case.trials:
        if trial.first.error is not None:
            yield f"it raises {_said(trial.first.error, trial.stage)}", trial.name
    if not case.trials:
        yield f"it refuses every model: {in_short([f'{name}: {reason}' for name, reason in case.refused.items()], 2)}", ""


def _first_line(error: BaseException) -> str:
    return (error.message if isinstance(error, KdError) else f"{type(error).__name__}: {error}").partition("\n")[0]


def _said(error: BaseException | None, stage: Stage) -> str:
    """An error, and the author's line that raised it unless it is one that a user is meant to read."""
    assert error is not None
    if isinstance(error, KdError):
        return f"KdError: {error.message}"
    place = raised_at(error, type(stage).__module__)
    return _first_line(error) + (f" ({place}: {place.code})" if place else "")


def judged(case: Case) -> Iterator[tuple[Check, str, str]]:
    """(check, what is wrong, where) for each thing that is wrong; that nothing ran, where nothing else tells why."""
    found: list[tuple[Check, str, str]] = []
    for each in CHECKS:
        if each is not runs or case.trials or not found:
            found += [(each, what, where) for what, where in each.find(case)]
    yield from found

"""Conformance checks of what a stage declares."""

from __future__ import annotations

import doctest
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from torch import nn

from kdkit.errors import KdError
from kdkit.parameters.bounds import bounds_of, outside
from kdkit.parameters.description import search_of
from kdkit.parameters.settings import option
from kdkit.parameters.tokenizer import split
from kdkit.parameters.value_types import kind
from kdkit.pipelines.pipeline import Pipeline
from kdkit.pipelines.text import read_stage
from kdkit.session.objects import Objects
from kdkit.stages.stage import Stage
from kdkit.stages.validation import validate_stage
from kdkit.testing import samples, zoo
from kdkit.testing.check import Found, check, describe_failure, first_line, same
from kdkit.testing.fingerprint import changes, fingerprint, in_short
from kdkit.testing.imports import at_load, hidden, is_foreign
from kdkit.testing.interruption import belongs
from kdkit.testing.subprocesses import load_time
from kdkit.testing.trial import Case, Trial, home_of
from kdkit.testing.trial_setup import each_need

LOAD_S = 0.3
"""The longest that a stage's module may take to load, beyond torch and kdkit."""


@check(
    "its class is complete: a docstring, and help, type, bounds and a default for every parameter",
    "declare each parameter as name: type = param(default, help, ge=..., le=...); a number that may be anything has a unit=",
)
def schema(case: Case) -> Found:
    yield from ((fault, "") for fault in _schema_faults(case.kind))


def untestable_reasons(stage: type[Stage]) -> Iterator[str]:
    """Why a stage can't be tested at all, a line each."""
    yield from validate_stage(stage)
    for name, field_info in stage.model_fields.items() if issubclass(stage, Stage) else ():
        if field_info.is_required() and not (field_info.json_schema_extra or {}).get("names"):  # type: ignore[union-attr]
            yield f"{option(name)} has no default and names no object of the session"


def _schema_faults(stage: type[Stage]) -> Iterator[str]:
    """What is missing in the declaration of a stage, a line each."""
    yield from untestable_reasons(stage)
    for name, field_info in stage.model_fields.items():
        this, limits, extra = kind(stage, name), bounds_of(stage, name), field_info.json_schema_extra
        extra = extra if isinstance(extra, dict) else {}
        if this.base in (int, float) and not (this.choices or this.many or limits or extra.get("unit")):
            yield f"{option(name)} is a number without bounds"
        yield from (f"{option(name)}: {fault}" for fault in _search_faults(stage, name))


def _search_faults(stage: type[Stage], name: str) -> Iterator[str]:
    """What is wrong with the search range of a parameter."""
    try:
        search = search_of(stage, name)
    except KdError as error:
        yield error.message
        return
    choices, values = kind(stage, name).choices, search.values() if search else ()
    beyond = [value for value in values if choices and value not in choices] or outside(values, bounds_of(stage, name))
    if beyond:
        yield f"its search range includes {beyond[0]}, which its bounds exclude"


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
    return Pipeline.from_data(yaml.load(yaml.dump(Pipeline((stage,)).data(), Dumper=_DUMPER, sort_keys=False), _LOADER)).stages[0]


def as_form(stage: Stage) -> Stage:
    """Through the wizard's form."""
    shown = _form(type(stage))
    shown.fill(stage.changed())
    return type(stage).build(stage.title, shown.values())


@functools.cache
def _form(kind: type[Stage]) -> Any:
    """The form of a stage, with the suggestions of the stage."""
    from kdkit.forms.form import Form

    return Form(kind, lambda settings, name: list(settings.suggestions(name)))


# the same YAML, eight times as fast where libyaml is installed
_DUMPER, _LOADER = getattr(yaml, "CSafeDumper", yaml.SafeDumper), getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def lost(case: Case, through: Callable[[Stage], Stage]) -> Iterator[str]:
    """The values that change when the stage is written and read again."""
    for name, value in [("", None), *samples.good(case.stage)]:
        try:
            stage = samples.with_value(case.stage, name, value) if name else case.stage
        except Exception:  # parameters that exclude each other; `messages` checks the text
            continue
        try:
            again = through(stage)
        except Exception as error:
            yield f"{_shown(name, value)} can't be read back: {first_line(error)}"
            continue
        if not same(again, stage):
            yield f"{_shown(name, value)} comes back as {_shown(name, getattr(again, name, None)) if name else repr(again)}"


def _shown(name: str, value: Any) -> str:
    return f"{option(name)} {value!r}" if name else "the stage with its defaults"


@check("written as a %kd line and read again, it is the same", "don't override line(); let validators return their input, or a value that they accept unchanged")
def line(case: Case) -> Found:
    yield from ((what, "") for what in lost(case, as_line))


@check("written to a recipe and read again, it is the same", "let validators accept a list where the field is a tuple, and accept their own result unchanged")
def recipe(case: Case) -> Found:
    yield from ((what, "") for what in lost(case, as_recipe))


@check("shown in a form and read from it again, it is the same", "let suggestions() return a list of texts; declare what a field holds by its type and by names=")
def form(case: Case) -> Found:
    yield from ((what, "") for what in lost(case, as_form))


@check(
    "a wrong value is refused by a KdError that names the option",
    "declare bounds with param; raise ValueError in validators; let check() yield a line for each impossible combination, and refuse a pattern that matches no layer",
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
            yield f"{_shown(name, value)} raises {describe_failure(error, case.stage)}", ""
            continue
        for trial in case.lead:
            if raised := _raised_by_check(stage, trial):
                yield f"{_shown(name, value)}: its check raises {describe_failure(raised, case.stage)}", trial.name
    for trial in case.lead:
        yield from ((what, trial.name) for name in samples.layer_options(case.kind) for what in _absent_layer(trial, name))


def _refusal(case: Case, name: str, value: Any) -> Iterator[str]:
    try:
        samples.with_value(case.stage, name, value)
    except KdError as error:
        if option(name) not in str(error):
            yield f"{_shown(name, value)} is refused without the option's name: {error.message}"
    except Exception as error:
        yield f"{_shown(name, value)} raises {describe_failure(error, case.stage)}"
    else:
        yield f"{_shown(name, value)} is accepted, although its declaration excludes it"


def _raised_by_check(stage: Stage, trial: Trial) -> Exception | None:
    try:
        list(stage.check(trial.setup.model, trial.setup.context(stage)))
    except KdError:
        return None
    except Exception as error:
        return error
    return None


def _absent_layer(trial: Trial, name: str) -> Iterator[str]:
    this = kind(type(trial.stage), name)
    value: Any = (samples.ABSENT_LAYER,) if this.many else samples.ABSENT_LAYER
    if this.mapping:
        value = {samples.ABSENT_LAYER: samples.values_of_entry(type(trial.stage), name)[0]}
    try:
        stage = samples.with_value(trial.stage, name, value)
        if list(stage.check(trial.setup.model, trial.setup.context(stage))):
            return
    except Exception:  # reported above
        return
    run = trial.run("with a pattern that matches no layer", stage=stage)
    if run.error is None:
        yield f"{_shown(name, value)} matches no layer and is not refused"
    elif not isinstance(run.error, KdError):
        yield f"{_shown(name, value)} matches no layer and raises {describe_failure(run.error, trial.stage)}"


@check(
    "the examples in its docstring run, and so does the line that its help shows",
    "fix the docstring's example; set sample_options to the other options that a realistic run of the technique needs",
)
def example(case: Case) -> Found:
    yield from ((what, "") for what in _docstring(case.kind))
    try:
        stage = samples.in_help(case.kind)
    except KdError as error:
        yield f"its line in help can't be read: {error.message}", ""
        return
    for trial in [] if case.kind.tried_as else case.lead:  # otherwise the zoo does not suit it
        run = trial.run("in the line of its help", stage=stage) if not same(stage, case.stage) else trial.first
        if run.error is not None:
            yield f"its line in help, {stage.line()!r}, raises {describe_failure(run.error, case.stage)}", trial.name


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
    output: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=output.append)
    if output:
        yield "its docstring's example fails: " + " ".join("".join(output).split("Failed example:")[-1].split())


@check(
    "it needs exactly what it declares: it runs with just that, and refuses when any of it is missing",
    "declare in needs (or in required_inputs(), where parameters decide) what apply takes from the context and which packages it imports; leave out the rest; "
    "choose on `validation`, and leave `eval` to the reports",
)
def needs(case: Case) -> Found:
    for trial in case.lead:
        found = (*_undeclared_objects(trial), *_evaluation_data(trial), *_undeclared_packages(trial), *_idle_packages(trial), *_idle_needs(trial))
        yield from ((what, trial.name) for what in found)


def _undeclared_objects(trial: Trial) -> Iterator[str]:
    run = trial.run("given what it declares", objects=trial.setup.objects(trial.stage))
    if run.error is not None:
        yield f"given just what it declares ({', '.join(trial.stage.required_inputs().names()) or 'nothing'}), it raises {describe_failure(run.error, trial.stage)}"


def _evaluation_data(trial: Trial) -> Iterator[str]:
    """Whether the result depends on the evaluation data although no option names it: then the figures measured on it are too good."""
    repeats = isinstance(trial.second.made, nn.Module) and not changes(trial.print, fingerprint(trial.second.made))
    if not repeats or "eval" in {name for _, _, name in trial.stage.named_objects()}:
        return
    other = trial.setup.session.objects.updated({"eval": zoo.data(trial.name, seed=3)}, zoo.ITEMS)
    run = trial.run("with other evaluation data", objects=other)
    if isinstance(run.made, nn.Module) and (places := changes(trial.print, fingerprint(run.made))):
        yield f"its result depends on the evaluation data, which is for measuring alone: with other data it differs in {in_short(places)}"


def _undeclared_packages(trial: Trial) -> Iterator[str]:
    stage, home = type(trial.stage), home_of(type(trial.stage))
    asked = {package for package, modules in trial.first.imports.items() if any(belongs(module, home) for module in modules)} | at_load(stage.__module__)
    of_model = {type(module).__module__.partition(".")[0] for module in trial.setup.model.modules()}
    for package in sorted(asked - set(trial.stage.required_inputs().packages) - of_model - {home.partition(".")[0]}):
        if is_foreign(package):
            yield f"it imports {package}, which its needs do not declare"


def _idle_packages(trial: Trial) -> Iterator[str]:
    for package in trial.stage.required_inputs().packages:
        if package not in trial.first.imports and package not in at_load(type(trial.stage).__module__):
            yield f"it declares the package {package} and never imports it"


def _idle_needs(trial: Trial) -> Iterator[str]:
    """Needs that make no difference, or whose absence raises something other than a `KdError`."""
    for need in each_need(trial.stage.required_inputs()):
        objects = trial.setup.objects(trial.stage, without=need)
        run = trial.run(f"without {need}", objects=objects)
        if run.error is None and isinstance(run.made, nn.Module) and not changes(trial.print, fingerprint(run.made)):
            yield f"it declares {need} and does the same without it"
        elif run.error is not None and not isinstance(run.error, KdError) and not _refused(trial, objects):
            yield f"without {need} it raises {describe_failure(run.error, trial.stage)}, not a KdError"
    for package in trial.stage.required_inputs().packages:
        with hidden(package):
            if not _refused(trial, trial.setup.session.objects):
                yield f"without the package {package} it is not refused"


def _refused(trial: Trial, objects: Objects) -> bool:
    """Whether the kit refuses the stage with these objects, before any work."""
    try:
        objects.check(trial.stage, trial.setup.session.task)
    except KdError:
        return True
    return False

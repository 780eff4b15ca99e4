'''Conformance for authors: does a stage do what it declares, and leave everything else unchanged?

Three lines in a test of a plugin; pytest shows each check as a separate test, `test_conformance[prune mine-untouched]`:

    from kdkit.testing import conformance
    from kdkit_mine import Mine
    test_conformance = conformance(Mine)

In a notebook, `%kd plugins check NAME`; in Python:

>>> import kdkit
>>> from kdkit.testing import check_stage
>>> @kdkit.stage("tune.halve")
... def halve(model, context):
...     """Halve every weight."""
...     for weight in model.parameters():
...         weight.data.mul_(0.5)
>>> check_stage(halve, models=["mlp", "cnn"])
tune halve: 17 of 17 checks hold; ran on mlp, cnn

A stage runs on every model of the zoo (`kdkit.testing.zoo`) that it does not refuse: an MLP, one with two heads, a CNN with skips and
BatchNorm, a depthwise CNN, an LSTM, and tiny BERT, Llama and GPT-2. Refusing is no failure: a stage should raise a `KdError` with the
reason for a model that it does not suit. But it must run on at least one; where its defaults suit none, set `tried_as` to options that
do. A technique for other models brings its own `kdkit.testing.zoo.CustomModel`: `conformance(Mine, models=["mlp", "my_models:transformer"])`.

Each run of a stage is in an empty working directory, and what it changes around it is put back.

`kdkit.testing.catalogue` lists the checks, each with its rule and how to fix a violation.
'''

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kdkit.errors import KdError, did_you_mean
from kdkit.guards.process_state import call_and_put_back
from kdkit.plugins.manager import manager
from kdkit.stages.stage import Stage
from kdkit.testing import zoo
from kdkit.testing.behaviour_checks import runs
from kdkit.testing.catalogue import CHECKS
from kdkit.testing.check import Check
from kdkit.testing.declaration_checks import schema, untestable_reasons
from kdkit.testing.report import Conformance, Conformances, Finding
from kdkit.testing.samples import instances_to_try
from kdkit.testing.trial import Case

__all__ = ["Conformance", "Conformances", "Finding", "check_plugin", "check_stage", "conformance"]


def check_stage(stage: type[Stage] | Stage | str, *, models: Iterable[str] | None = None) -> Conformance:
    """Run all checks on a stage; what it changes of the process is restored afterwards.

    Args:
        stage: its class, which runs with its defaults; or an instance, or a line such as "prune mine --ratio 0.3", to set options.
        models: names of models of the zoo, or of your own as "module:name" (see `zoo.CustomModel`); default: all models of the zoo.

    Returns:
        The report; its method `require` raises an error if something is wrong.

    Raises:
        KdError: there is no such model, or no such stage.
    """
    names = tuple(models if models is not None else zoo.MODELS)
    for name in names:
        zoo.make(name)
    made = next(instances_to_try(stage)) if isinstance(stage, str) else stage
    kind = made if isinstance(made, type) else type(made)
    if wrong := list(untestable_reasons(kind)):
        return Conformance(_title(kind), (schema,), tuple(Finding(schema, what) for what in wrong))
    with _offered(kind):
        case, found = call_and_put_back(lambda: _checked(made, names), lambda changed: None, trusted=True)
    return Conformance(_title(kind), tuple(CHECKS), found, tuple(trial.name for trial in case.whole), case.refused)


def _checked(stage: type[Stage] | Stage, names: tuple[str, ...]) -> tuple[Case, tuple[Finding, ...]]:
    case = _tried(stage, names)
    return case, tuple(Finding(check, what, where) for check, what, where in violations(case))


def _tried(stage: type[Stage] | Stage, names: tuple[str, ...]) -> Case:
    """The first instance that some model does not refuse; the first of all where every model refuses."""
    tried = []
    for instance in instances_to_try(stage):
        tried.append(Case.of(instance, names))
        if tried[-1].trials:
            return tried[-1]
    return tried[0]


def _title(stage: type[Stage]) -> str:
    return str(stage.id).replace(".", " ", 1) or stage.__name__


@contextlib.contextmanager
def _offered(stage: type[Stage]) -> Iterator[None]:
    """The stage as one that a line can name, for the while, where no plugin offers it yet.

    Raises:
        KdError: a plugin offers another stage by its id.
    """
    if manager().stages().get(stage.id) is stage:
        yield
        return
    cells = manager().get_plugin("notebook").stages  # type: ignore[union-attr]
    before = dict(cells)
    manager().offer(stage)
    try:
        yield
    finally:
        cells.clear()
        cells.update(before)
        manager().forget()


def check_plugin(name: str, *, models: Iterable[str] | None = None) -> Conformances:
    """Put every stage of a plugin through all checks.

    Args:
        name: of the plugin, or of its distribution.
        models: as for `check_stage`.

    Raises:
        KdError: there is no such plugin, it is not loaded, or it offers no stage.

    >>> check_plugin("tune", models=["mlp"])
    tune: 1 of 1 stages conform
    tune finetune: 17 of 17 checks hold; ran on mlp
    """
    chosen = None if models is None else tuple(models)
    return Conformances(name, tuple(check_stage(stage, models=chosen) for stage in _stages_of(name)))


def _stages_of(name: str) -> list[type[Stage]]:
    found = [plugin for plugin in manager().plugins() if name in (plugin.name, plugin.distribution)]
    if not found:
        raise KdError(f"no plugin {name!r}", did_you_mean(name, [plugin.name for plugin in manager().plugins()]), "%kd plugins lists them")
    if down := [plugin for plugin in found if plugin.status != "ok"]:
        raise KdError(f"plugin {name} is {down[0].status}: {down[0].reason}", "fix that first, or %kd plugins unblock NAME")
    stages = [stage for id, stage in manager().stages().items() if any(id in plugin.offers for plugin in found)]
    if not stages:
        raise KdError(f"plugin {name} offers no stage", "kdkit.testing checks stages; %kd plugins shows what it offers")
    return stages


def conformance(*stages: type[Stage] | Stage | str, models: Iterable[str] | None = None) -> Callable[..., Any]:
    """A pytest test with one case for each stage and check.

    Args:
        stages: each a class, an instance or a line, as for `check_stage`.
        models: as for `check_stage`.

    >>> test_conformance = conformance("decompose svd --ratio 0.4", models=["mlp"])
    """
    import pytest

    chosen = None if models is None else tuple(models)
    report = functools.cache(lambda number: check_stage(stages[number], models=chosen))

    @pytest.mark.parametrize("check", [check.name for check in CHECKS])
    @pytest.mark.parametrize("number", range(len(stages)), ids=list(map(_named, stages)))
    def test_conformance(number: int, check: str) -> None:
        found = report(number).of(check)
        if not found.checks:
            pytest.skip("its class is incomplete: see the check `schema`")
        if not found.ok:
            pytest.fail(repr(found), pytrace=False)

    return test_conformance


def _named(stage: type[Stage] | Stage | str) -> str:
    return stage.removeprefix("%kd ") if isinstance(stage, str) else _title(stage if isinstance(stage, type) else type(stage))


def violations(case: Case) -> Iterator[tuple[Check, str, str]]:
    """(check, what is wrong, where) for each violation; that nothing ran only counts where no other check explains it."""
    found: list[tuple[Check, str, str]] = []
    for each in CHECKS:
        if each is not runs or case.trials or not found:
            found += [(each, what, where) for what, where in each.find(case)]
    yield from found

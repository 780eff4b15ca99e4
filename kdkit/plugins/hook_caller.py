"""Calling hooks in isolation: an implementation that raises does not stop the others, and what it changes in the process is put back."""

from __future__ import annotations

import copy
import functools
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import pluggy

from kdkit.errors import KdError, describe_exception
from kdkit.guards.interrupts import package_of, raise_interrupt
from kdkit.plugins.cell_runs import current_run
from kdkit.plugins.hook_results import complete, result_fault

Result = TypeVar("Result")

RUNS_STAGE = "kdkit_run_stage"
OWN_PROTOCOL = "kdkit.protocol"
"""The plugin that calls `Stage.apply`; the session validates what that returns."""


class HookCaller(pluggy.PluginManager):
    """A plugin manager that can call the implementations of a hook one by one."""

    def __init__(self, project_name: str) -> None:
        super().__init__(project_name)
        self._named_changes: set[tuple[str, str]] = set()
        """(whose code, setting) for each change that the user knows of."""

    def source(self, plugin: str) -> str:
        """A plugin's name in messages."""
        return plugin

    def is_own(self, package: str) -> bool:
        """Whether a package comes with kdkit."""
        return package.partition(".")[0] == "kdkit"

    def _mark_broken(self, name: str, error: BaseException) -> None:
        """Record why a plugin failed."""

    def each(self, hook: str, report: Callable[[str], None], **arguments: Any) -> list[Any]:
        """The results of a hook's implementations, called one by one; one that raises or returns something else is reported and skipped."""
        implementations = list(getattr(self.hook, hook).get_hookimpls())
        return [result for each in implementations for result in self._call_isolated(hook, each, report, arguments)]

    def first(self, hook: str, report: Callable[[str], None], **arguments: Any) -> Any:
        """The first result that is not None, latest plugin first; an implementation that raises or returns something else is reported and skipped.

        Raises:
            KdError: an implementation raised it: the object belongs to that plugin, and is invalid.
        """
        for implementation in reversed(getattr(self.hook, hook).get_hookimpls()):
            for result in self._call_isolated(hook, implementation, report, arguments, KdError):
                if result is not None:
                    return result
        return None

    def _call_isolated(
        self, hook: str, implementation: pluggy.HookImpl, report: Callable[[str], None], arguments: dict[str, Any], let_through: type[Exception] | tuple[()] = ()
    ) -> list[Any]:
        """The result in a list; an empty list if the implementation raised, or returned something that the hook does not."""
        name, handled, home = implementation.plugin_name, sys.exception(), home_of(implementation)
        who = f"plugin {self.source(name)}"
        try:
            result = self.guarded(who, lambda: complete(hook, self._call(hook, implementation, arguments)), home)
        except let_through:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit too
            raise_interrupt(error, home, handled)
            report(f"{who}: {hook} raised {describe_exception(error)}")
            return []
        if fault := result_fault(hook, result):
            self._mark_broken(name, KdError(fault))
            report(f"{who}: {fault}")
            return []
        return [result]

    def guarded(self, who: str, call: Callable[[], Result], home: str, *, random_state: bool = True) -> Result:
        """Call a plugin's code, put back what it changes in the process, and name each such change once, except those of kdkit's own plugins.

        Args:
            who: whose code it is, in messages.
            call: calls it.
            home: the package of the code.
            random_state: False within a block that seeds the random generators and restores them itself.
        """
        from kdkit.guards.process_state import call_and_put_back  # imports torch

        run = current_run()

        def alone() -> bool:
            """Whether no cell of the user's ran beside the call, which then was in another thread, and may have changed the same settings."""
            return threading.current_thread() is threading.main_thread() or current_run() == run

        own = self.is_own(home)  # then a package that it calls changed them, and no user can do anything about that
        report: Callable[[Sequence[str]], None] = (lambda changed: None) if own else functools.partial(self._name_changes, who)
        return call_and_put_back(call, report, home=home, trusted=own, random_state=random_state, of_process=alone)

    def _name_changes(self, who: str, changed: Sequence[str]) -> None:
        new = [name for name in changed if (who, name) not in self._named_changes]
        self._named_changes.update((who, name) for name in new)
        if new:
            warnings.warn(f"{who} changed {', '.join(new)}; kdkit put it back", stacklevel=2)

    def _call(self, hook: str, implementation: pluggy.HookImpl, arguments: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """Call one implementation through pluggy, so that a trace records it."""
        return self._hookexec(hook, [implementation], arguments, True)

    def _hookexec(self, hook_name: str, methods: Sequence[pluggy.HookImpl], kwargs: Mapping[str, object], firstresult: bool) -> Any:
        if hook_name == RUNS_STAGE:
            methods = [method if method.plugin_name == OWN_PROTOCOL else self._validating(method) for method in methods]
        return super()._hookexec(hook_name, methods, kwargs, firstresult)

    def _validating(self, implementation: pluggy.HookImpl) -> pluggy.HookImpl:
        """A copy of an implementation of `kdkit_run_stage` that raises a `KdError` where its result is no model."""
        function = implementation.function

        @functools.wraps(function)
        def plain(*arguments: Any) -> Any:
            return self._validated(implementation, function(*arguments))

        @functools.wraps(function)
        def wrapper(*arguments: Any) -> Generator[Any, Any, Any]:
            inner = None

            def passed(result: Any) -> Any:
                nonlocal inner
                inner = result
                return result

            result = yield from _with_result(function(*arguments), passed)  # type: ignore[arg-type]  # a wrapper is a generator
            return result if result is inner else self._validated(implementation, result)

        validating = copy.copy(implementation)
        validating.function = wrapper if implementation.wrapper else plain  # type: ignore[misc]
        return validating

    def _validated(self, implementation: pluggy.HookImpl, result: Any) -> Any:
        fault = result_fault(RUNS_STAGE, result)
        if result is None and implementation.wrapper:
            fault = f"its {RUNS_STAGE} is a wrapper and returned nothing; it must return what its yield gives"
        if fault:
            error = KdError(f"plugin {self.source(implementation.plugin_name)}: {fault}", f"%kd plugins block {implementation.plugin_name}")
            self._mark_broken(implementation.plugin_name, KdError(fault))
            raise error
        return result


def _with_result(generator: Generator[Any, Any, Any], passed: Callable[[Any], Any]) -> Generator[Any, Any, Any]:
    """A wrapper's generator, with a function called on the result that it receives."""
    next(generator)
    try:
        received = passed((yield))
    except BaseException as error:
        try:
            generator.throw(error)
        except StopIteration as end:
            return end.value
        raise RuntimeError("a wrapper must yield once") from error
    try:
        generator.send(received)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a wrapper must yield once")


def home_of(implementation: pluggy.HookImpl) -> str:
    """The package of an implementation's code."""
    return package_of(getattr(implementation.function, "__module__", None) or "")

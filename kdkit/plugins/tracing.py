"""Tracing: which hook was called, what each plugin returned, and how long it took."""

from __future__ import annotations

import copy
import functools
import inspect
import reprlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kdkit.display.table import Cell, Table, number, volatile
from kdkit.errors import read_message

if TYPE_CHECKING:
    from pluggy import HookImpl, PluginManager


@dataclass(frozen=True)
class HookCall:
    """One call of one plugin's hook implementation.

    Attributes:
        hook, plugin: what was called.
        arguments: those that it took, in short.
        outcome: what it returned, in short, or the error it raised.
        seconds: how long it took; for a wrapper, with everything that it wraps.
    """

    hook: str
    plugin: str
    arguments: str
    outcome: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.plugin}: {self.hook}({self.arguments}) {self.outcome}, {_duration(self.seconds)}"


@dataclass
class Trace:
    """The hook calls while it was on, oldest first.

    Args:
        on_call: called with each call when it ends.

    >>> from kdkit.plugins.manager import manager
    >>> trace = Trace()
    >>> trace.begin(manager())
    >>> manager().each("kdkit_event", print, event=None)
    []
    >>> trace.end(manager())
    >>> trace.calls
    []
    """

    on_call: Callable[[HookCall], None] | None = None
    calls: list[HookCall] = field(default_factory=list)
    _inner: Callable | None = None

    def begin(self, manager: PluginManager) -> None:
        """Record the hook calls of a manager."""
        self._inner = inner = manager._inner_hookexec

        def traced(hook: str, implementations: Sequence[HookImpl], arguments: Mapping[str, object], firstresult: bool) -> Any:
            return inner(hook, [self._traced(each, hook) for each in implementations], arguments, firstresult)

        manager._inner_hookexec = traced  # type: ignore[assignment]

    def end(self, manager: PluginManager) -> None:
        """Stop recording; the manager is as before."""
        manager._inner_hookexec = self._inner  # type: ignore[assignment]

    def _traced(self, implementation: HookImpl, hook: str) -> HookImpl:
        """A copy of an implementation that records its call."""
        function = implementation.function

        def record(arguments: Sequence[Any], outcome: str, began: float) -> None:
            self._record(HookCall(hook, implementation.plugin_name, ", ".join(map(short, arguments)), outcome, time.perf_counter() - began))

        @functools.wraps(function)
        def plain(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                result = function(*arguments)
            except BaseException as error:
                record(arguments, f"raised {type(error).__name__}: {short(read_message(error))}", began)
                raise
            record(arguments, f"returned {short(result)}", began)
            return result

        @functools.wraps(function)
        def wrapper(*arguments: Any) -> Iterator[Any]:
            began = time.perf_counter()
            try:
                result = yield from function(*arguments)  # type: ignore[misc]
            except BaseException as error:
                record(arguments, f"passed on {type(error).__name__}: {short(read_message(error))}", began)
                raise
            record(arguments, f"wrapped it and returned {short(result)}", began)
            return result

        traced = copy.copy(implementation)
        traced.function = wrapper if implementation.wrapper else plain  # type: ignore[misc]
        return traced

    def _record(self, call: HookCall) -> None:
        self.calls.append(call)
        if self.on_call is not None:
            self.on_call(call)

    def table(self) -> Table:
        """The calls in the order in which they first ended, equal ones in one row."""
        same: dict[HookCall, list[HookCall]] = {}
        for each in self.calls:
            same.setdefault(replace(each, seconds=0.0), []).append(each)
        return Table(
            ["hook", "plugin", "arguments", "result", "calls", "time"],
            [[each.hook, each.plugin, each.arguments, each.outcome, len(found), Cell(_duration(sum(one.seconds for one in found)))] for each, found in same.items()],
            f"{len(self.calls)} calls" if self.calls else "no hook was called",
        )


def _duration(seconds: float) -> str:
    return volatile(number(1000 * seconds, "ms"))


def short(value: Any) -> str:
    """A value in a few words, without calling its `__repr__`, which can be long, slow or wrong for a model.

    >>> from torch import nn
    >>> short(nn.Linear(2, 2)), short(["a", 1]), short(nn.Linear), short("x" * 99)
    ('Linear', "['a', 1]", 'class Linear', "'xxxxxxxxxxxx...xxxxxxxxxxxxx'")
    """
    if value is None or isinstance(value, bool | int | float | str):
        return reprlib.repr(value)
    if isinstance(value, type):
        return f"class {value.__name__}"
    if isinstance(value, list | tuple):
        return f"[{', '.join([*map(short, value[:3]), *(['...'] if len(value) > 3 else [])])}]"
    name = next((text for fact in ("id", "name", "kind") if isinstance(text := inspect.getattr_static(value, fact, None), str) and text), "")
    name = name or next((text for fact in ("name", "kind") if isinstance(text := getattr(value, "__dict__", {}).get(fact), str)), "")
    return type(value).__name__ + (f" {name}" if name else "")

"""Tracing: which hook was asked, which plugin answered what, and how long it took."""

from __future__ import annotations

import copy
import functools
import inspect
import reprlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kdkit.table import Cell, Table, number, volatile

if TYPE_CHECKING:
    from pluggy import HookImpl

    from kdkit.plugins import Manager


@dataclass(frozen=True)
class Answer:
    """What one plugin answered to one call of a hook.

    Attributes:
        hook, plugin: who was asked what.
        asked: the arguments it took, in short.
        outcome: what it returned, in short, or the error it raised.
        seconds: how long it took; of a wrapper, with all that it stands around.
    """

    hook: str
    plugin: str
    asked: str
    outcome: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.plugin}: {self.hook}({self.asked}) {self.outcome}, {_took(self.seconds)}"


@dataclass
class Trace:
    """The answers that were given while it was on, oldest first.

    >>> from kdkit.plugins import manager
    >>> trace = Trace()
    >>> trace.begin(manager())
    >>> manager().each("kdkit_event", print, event=None)
    []
    >>> trace.end(manager())
    >>> trace.answers
    []
    """

    tell: Callable[[Answer], None] | None = None
    answers: list[Answer] = field(default_factory=list)
    _inner: Callable | None = None

    def begin(self, manager: Manager) -> None:
        """Listen to a manager."""
        self._inner = inner = manager._inner_hookexec

        def heard(hook: str, implementations: Sequence[HookImpl], arguments: Mapping[str, object], firstresult: bool) -> Any:
            return inner(hook, [self._watched(each, hook) for each in implementations], arguments, firstresult)

        manager._inner_hookexec = heard  # type: ignore[assignment]

    def end(self, manager: Manager) -> None:
        """Listen no more; the manager is as it was."""
        manager._inner_hookexec = self._inner  # type: ignore[assignment]

    def _watched(self, implementation: HookImpl, hook: str) -> HookImpl:
        """A copy of an implementation that tells what it does."""
        function = implementation.function

        def answered(given: Sequence[Any], outcome: str, began: float) -> None:
            asked = ", ".join(map(short, given))
            self._hear(Answer(hook, implementation.plugin_name, asked, outcome, time.perf_counter() - began))

        @functools.wraps(function)
        def plain(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                result = function(*given)
            except BaseException as error:
                answered(given, f"raised {type(error).__name__}: {short(str(error))}", began)
                raise
            answered(given, f"gave {short(result)}", began)
            return result

        @functools.wraps(function)
        def around(*given: Any) -> Iterator[Any]:
            began = time.perf_counter()
            try:
                result = yield from function(*given)  # type: ignore[misc]
            except BaseException as error:
                answered(given, f"let through {type(error).__name__}: {short(str(error))}", began)
                raise
            answered(given, f"stood around it and gave {short(result)}", began)
            return result

        watched = copy.copy(implementation)
        watched.function = around if implementation.wrapper else plain  # type: ignore[misc]
        return watched

    def _hear(self, answer: Answer) -> None:
        self.answers.append(answer)
        if self.tell is not None:
            self.tell(answer)

    def table(self) -> Table:
        """The answers in the order in which they were first given, those that are the same in one row."""
        same: dict[Answer, list[Answer]] = {}
        for each in self.answers:
            same.setdefault(replace(each, seconds=0.0), []).append(each)
        return Table(
            ["hook", "plugin", "asked about", "answer", "calls", "time"],
            [[each.hook, each.plugin, each.asked, each.outcome, len(found), Cell(_took(sum(one.seconds for one in found)))] for each, found in same.items()],
            f"{len(self.answers)} answers" if self.answers else "no hook was called",
        )


def _took(seconds: float) -> str:
    return volatile(number(1000 * seconds, "ms"))


def short(value: Any) -> str:
    """A value in a few words, without asking it for its own: the repr of a model can be long, slow, or wrong.

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
    named = next((said for name in ("id", "name", "kind") if isinstance(said := inspect.getattr_static(value, name, None), str) and said), "")
    named = named or next((said for name in ("name", "kind") if isinstance(said := getattr(value, "__dict__", {}).get(name), str)), "")
    return type(value).__name__ + (f" {named}" if named else "")

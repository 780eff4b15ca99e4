"""Hook results: what each hook must return, and what is wrong with something else."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kdkit.backends.base import Backend
from kdkit.errors import KdError
from kdkit.parameters.settings import Settings
from kdkit.parameters.value_types import field_faults
from kdkit.stages.line_options import RESERVED_WORDS
from kdkit.stages.run import Outcome
from kdkit.stages.stage import Stage


@dataclass(frozen=True)
class Records:
    """What a contributing hook returns a list of.

    Attributes:
        words: in messages.
        accepts: whether an object is one.
        classes: whether they are classes, not instances.
    """

    words: str
    accepts: Callable[[Any], bool]
    classes: bool = False


def _is_task(record: Any) -> bool:
    from kdkit.tasks import Task  # imports torch, as the next ones

    return isinstance(record, Task)


def _is_measure(record: Any) -> bool:
    from kdkit.measurement.measure import Measure

    return isinstance(record, Measure)


def _is_backend(record: Any) -> bool:
    return isinstance(record, Backend)


def _is_codec(record: Any) -> bool:
    from kdkit.storage.codecs import Codec

    return isinstance(record, Codec)


def _is_tracker(record: Any) -> bool:
    return not isinstance(record, type) and callable(getattr(record, "log", None))


def _is_view(record: Any) -> bool:
    return isinstance(record, type) and issubclass(record, Settings) and callable(getattr(record, "of", None))


CONTRIBUTED: Mapping[str, Records] = {
    "kdkit_stages": Records("classes derived from kdkit.Stage", lambda record: isinstance(record, type) and issubclass(record, Stage), classes=True),
    "kdkit_tasks": Records("instances of classes derived from kdkit.Task", _is_task),
    "kdkit_measures": Records("kdkit.Measure", _is_measure),
    "kdkit_backends": Records("instances of classes derived from kdkit.backends.Backend", _is_backend),
    "kdkit_codecs": Records("kdkit.storage.Codec", _is_codec),
    "kdkit_trackers": Records("objects with a name and log(event)", _is_tracker),
    "kdkit_views": Records("classes derived from kdkit.View", _is_view, classes=True),
}
"""Contributing hook -> what it returns."""


def _is_model(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _is_run(value: Any) -> bool:
    return _is_model(value.model if isinstance(value, Outcome) else value)


def _is_data(value: Any) -> bool:
    from kdkit.data import Data

    return isinstance(value, Data)


def _is_widget(value: Any) -> bool:
    return not isinstance(value, type) and hasattr(value, "has_trait") and value.has_trait("value")


RETURNED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "kdkit_adopt_model": ("an nn.Module, or None for an object of another kind", _is_model),
    "kdkit_adopt_data": ("kdkit.Data, or None for an object of another kind", _is_data),
    "kdkit_widget": ("a widget with a value, or None for kdkit's own", _is_widget),
    "kdkit_run_stage": ("an nn.Module or an Outcome; a wrapper returns what its yield gives", _is_run),
    "kdkit_event": ("nothing", lambda value: False),
    "kdkit_error_hints": ("a list of texts", lambda value: isinstance(value, list) and all(isinstance(hint, str) for hint in value)),
}
"""Other hook -> (what it returns, whether a result is that); None is a result of each, except of a wrapper."""


def result_fault(hook: str, value: Any) -> str:
    """What is wrong with the result of a hook that contributes no records; empty if it is right.

    >>> result_fault("kdkit_adopt_model", 42), result_fault("kdkit_adopt_model", None)
    ('its kdkit_adopt_model returned 42; it must return an nn.Module, or None for an object of another kind', '')
    """
    words, accepts = RETURNED[hook]
    return "" if value is None or accepts(value) else f"its {hook} returned {in_words(value)}; it must return {words}"


def complete(hook: str, value: Any) -> Any:
    """A hook's result; what it would compute later, as a generator does, is computed now."""
    return list(value) if hook == "kdkit_error_hints" and isinstance(value, Iterable) and not isinstance(value, str) else value


def checked_records(hook: str, contributed: Any) -> list[Any]:
    """What a contributing hook returned, as a list.

    Raises:
        KdError: it returned no list, or something in it is not what the hook contributes.
    """
    wanted = CONTRIBUTED[hook]
    if isinstance(contributed, str | bytes | Mapping) or not isinstance(contributed, Iterable):
        raise KdError(f"its {hook} returned {in_words(contributed)}; it must return a list of {wanted.words}")
    records = list(contributed)
    for record in records:
        if fault := _record_fault(hook, wanted, record):
            raise KdError(f"its {hook} returned {fault}")
        if hook == "kdkit_views":
            _check_view(record)
        elif not wanted.classes and not (isinstance(record.name, str) and record.name):
            raise KdError(f"its {hook} returned {in_words(record)} whose name is {in_words(record.name)}; its name must be a text")
    return records


def _record_fault(hook: str, wanted: Records, record: Any) -> str:
    if wanted.accepts(record) and (wanted.classes or hasattr(record, "name")):
        return ""
    if isinstance(record, type) and not wanted.classes:
        return f"the class {record.__name__}; return an instance: {record.__name__}()"
    if wanted.classes and not isinstance(record, type) and wanted.accepts(type(record)):
        return f"an instance of {type(record).__name__}; return the class: {type(record).__name__}"
    return f"a list with {in_words(record)}; it must return a list of {wanted.words}"


def _check_view(view: Any) -> None:
    """Check a view before it becomes a verb.

    Raises:
        KdError: its name is not one word or is a verb of kdkit's, or a line can't carry one of its options.
    """
    if not re.fullmatch("[a-z][a-z0-9-]*", getattr(view, "name", "")):
        raise KdError(f"its view {view.__name__} has the name {getattr(view, 'name', '')!r}", "use lower-case letters, digits and dashes")
    if view.name in RESERVED_WORDS and view.__module__.partition(".")[0] != "kdkit":
        raise KdError(f"its view {view.__name__} has the name {view.name!r}, which is a verb of %kd", "choose another name")
    wrong = list(field_faults(view))
    if wrong:
        raise KdError(f"its view {view.__name__}: {'; '.join(wrong)}")


def in_words(value: Any) -> str:
    """A value in messages, without its `__repr__`, which can be long, slow or wrong.

    >>> in_words(None), in_words(42), in_words("abc"), in_words(dict), in_words([1])
    ('nothing', '42', "the text 'abc'", 'the class dict', 'one list')
    """
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {reprlib.repr(value)}"
    if isinstance(value, bool | int | float):
        return reprlib.repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"one {type(value).__name__}"

"""Settings: what a session can be given, declared once for the constructor, `set`, the verbs, help and forms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Optional, TypeVar

from pydantic import create_model

from kdkit.errors import KdError, did_you_mean
from kdkit.parameters.settings import Settings, param
from kdkit.parameters.value_types import object_kind
from kdkit.plugins.manager import manager
from kdkit.stages.data_sources import DATA

Declared = TypeVar("Declared", bound=type)


class SessionSettings(Settings):
    """What a session can be given beside its model.

    Fields that refer to data, a model or an object are the session's objects, which stages name; all others are its settings.
    """

    hooks: ClassVar[Mapping[str, str]] = {"task": "kdkit_tasks", "measures": "kdkit_measures", "trackers": "kdkit_trackers", "backend": "kdkit_backends"}
    """Fields that name what plugins contribute, and the hook that contributes it."""

    train: Any = param(None, "data to train on", names="data")
    eval: Any = param(None, "held-out data to measure quality on", names="data")
    calibration: Any = param(None, "data to calibrate quantization on; labels are not needed", names="data")
    validation: Any = param(None, "data to choose the best epoch on", names="data")
    example: Any = param(None, "one batch of inputs, if there is no data", names="data")
    teacher: Any = param(None, "a model to learn from; default: the original model", names="model")
    tokenizer: Any = param(None, "the tokenizer of a language model", names="object")
    task: Any = param(None, "a task or its name; default: inferred from the model and the data", names="function")
    output: str | None = param(None, "which of several outputs of the model is evaluated, by number or name; default: a standard name, or the one that fits the labels")
    loss: Any = param(None, "loss(prediction, labels) to use instead of the task's loss; loss(output, labels) receives the model's complete output", names="function")
    metric: Any = param(None, "metric(predictions, labels) to use instead of the task's metric; metric(output, labels) receives complete outputs", names="function")
    sample: int | None = param(None, "items of the eval data to measure versions on at first; default: all, or 5000 of more than 20 000", ge=1)
    measures: tuple[str, ...] | None = param(None, "names of what to measure after each stage; default: everything")
    trackers: tuple[str, ...] = param((), "names of loggers, contributed by plugins, that receive stage events; --no-trackers turns them off")
    backend: str = param("cpu", "where versions run and are measured: cpu, cpu-bf16, cuda, int8, ...")
    loss_limit: float = param(2.0, "loss of quality above which a step is marked: in points (hundredths) of a share such as accuracy, in percent of other figures", ge=0)
    seed: int = param(0, "random seed of every stage", ge=0)
    batch_size: int = param(32, "batch size for data given as one array", ge=1)
    verbose: bool | None = param(None, "whether sessions in plain Python show progress bars; default: on terminals and in notebooks")
    others: Any = param(None, "any other object, under the name by which stages refer to it", names="others")

    @classmethod
    def suggestions(cls, parameter: str) -> Iterable[str]:
        return [record.name for _, record in manager().contributions(cls.hooks[parameter])] if parameter in cls.hooks else ()

    @classmethod
    def find_record(cls, parameter: str, name: str) -> Any:
        """What a plugin contributes under a name.

        Raises:
            KdError: no plugin contributes it, or two do.
        """
        hook = cls.hooks[parameter]
        return manager().named(hook, name, hook.removeprefix("kdkit_").removesuffix("s"))

    def given(self) -> dict[str, Any]:
        """The fields that were set explicitly, by name, with the other objects among them."""
        given = {name: getattr(self, name) for name in SessionSettings.model_fields if name in self.model_fields_set}
        return given | (given.pop("others", None) or {})


OBJECT_ROLES = ("data", "model", "object")
DEFAULTS: Mapping[str, Any] = {
    name: field.default for name, field in SessionSettings.model_fields.items() if object_kind(SessionSettings, name) not in (*OBJECT_ROLES, "others")
}
"""The settings proper, with their defaults; whatever else a session is given is an object."""


def role(name: str) -> str:
    """What an object of that name is for: "data", "model", "object"; empty for a name that is not declared.

    >>> role("eval"), role("teacher"), role("pool")
    ('data', 'model', '')
    """
    return object_kind(SessionSettings, name) if name in SessionSettings.model_fields else ""


def without_defaults() -> type[SessionSettings]:
    """`SessionSettings` in which no field has a default value: for `set`, where a field that is not given stays as it is."""
    optional = {
        name: (Optional[field.annotation], field.merge_field_infos(field, default=None))  # noqa: UP045, at run time `|` does not take every annotation
        for name, field in SessionSettings.model_fields.items()
        if field.default not in (None, ())
    }
    return create_model("SessionChanges", __base__=SessionSettings, __doc__=SessionSettings.__doc__, **optional)  # type: ignore[call-overload]


def accept_settings(initializer: Callable) -> Callable:
    """Decorate an `__init__` that collects settings in `**named`, to show each of them in its signature."""
    signature = inspect.signature(initializer)
    *own, objects = signature.parameters.values()
    declared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
        for name, field in SessionSettings.model_fields.items()
        if name != "others"
    ]
    initializer.__signature__ = signature.replace(parameters=[*own, *declared, objects])  # type: ignore[attr-defined]
    return initializer


def document_settings(owner: Declared) -> Declared:
    """Decorate a class, to list the settings where its docstring has a line `SETTINGS`."""
    lines = [f"        {name}: {field.description}." for name, field in SessionSettings.model_fields.items() if name != "others"]
    owner.__doc__ = (owner.__doc__ or "").replace("        SETTINGS", "\n".join(lines))
    return owner


OTHER_NAMES_OF_DATA = frozenset({"test", "testing", "test_data", "val", "valid", "dev", "holdout", "heldout", "held_out_data"})
"""What others call held-out data; kdkit has two kinds of it, so such a name alone does not say what the data is for."""


def refuse_other_names(given: Mapping[str, Any]) -> None:
    """Refuse data under a name that others use for held-out data, which the session would keep and never look at.

    Raises:
        KdError: there is such a name.
    """
    for name in given:
        if name in OTHER_NAMES_OF_DATA and given[name] is not None:
            fields = SessionSettings.model_fields
            raise KdError(f"--{name} is not a name under which a session looks for data", *(f"--{each}: {fields[each].description}" for each in ("eval", "validation")))


def check_names(given: Mapping[str, Any]) -> None:
    """Refuse an object whose name is almost that of a data set, in a session without any data.

    Raises:
        KdError: there is one.
    """
    if any(name in given for name in DATA):
        return
    for name in given:
        meant = "" if name in SessionSettings.model_fields else did_you_mean(name, DATA)
        if meant:
            raise KdError(f"{name}= is not one of the names under which a session looks for data", meant, f"data: {', '.join(DATA)}")


def changed_settings(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings after a change, checked.

    Args:
        before: the settings so far.
        given: settings and objects by name; a bare name of a measure or a tracker counts as a tuple of one.

    Raises:
        KdError: a value is out of bounds, or names a backend or a measure that can't be used; or a setting that always has a value is None.
    """
    for name, value in given.items():
        if value is None and DEFAULTS.get(name) not in (None, ()):
            raise KdError(f"--{name.replace('_', '-')} can't be turned off", f"its default: %kd set --{name.replace('_', '-')} {DEFAULTS[name]}")
    settings = {**before, **{name: value for name, value in given.items() if name in DEFAULTS}}
    for name in ("measures", "trackers"):
        if isinstance(settings[name], str):
            settings[name] = (settings[name],)
        if settings[name] is not None and not (isinstance(settings[name], list | tuple) and all(isinstance(each, str) for each in settings[name])):
            raise KdError(f"--{name} {settings[name]!r} is not a list of names", f'for example {name}=("quality", "size")' if name == "measures" else "")
    for name in ("seed", "batch_size"):
        check_integer(name, settings[name])
    if settings["sample"] is not None:
        check_integer("sample", settings["sample"])
    limit = settings["loss_limit"]
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:
        raise KdError(f"--loss-limit {limit!r} is not a number from 0 up", "2 marks a loss of more than 2 points")
    reason = SessionSettings.find_record("backend", str(settings["backend"])).unavailable()
    if reason:
        raise KdError(f"backend {settings['backend']} can't be used here: {reason}", "%kd set --backend cpu")
    known = SessionSettings.suggestions("measures") if settings["measures"] else ()
    for name in settings["measures"] or ():
        if name not in known:
            raise KdError(f"no measure {name!r}", did_you_mean(name, known), f"measures: {', '.join(known)}")
    return settings


def check_integer(name: str, value: Any) -> int:
    """The value of an integer setting, if it is within its bounds and torch's.

    Raises:
        KdError: it is not.
    """
    least = next(bound.ge for bound in SessionSettings.model_fields[name].metadata if hasattr(bound, "ge"))
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise KdError(f"--{name.replace('_', '-')} {value!r} is not a whole number from {least} up", "give one below 2**63")
    return value

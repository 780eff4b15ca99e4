"""Settings: the fields of a frozen class are its options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from kdkit.errors import KdError, brief, printable
from kdkit.parameters.bounds import Bounds, outside
from kdkit.parameters.mapping import FrozenDict, differ
from kdkit.parameters.number_text import SHARES
from kdkit.parameters.search import Search
from kdkit.parameters.value_text import write_value
from kdkit.renaming import renamed_argument, warn_renamed


@renamed_argument("refers", "names")
def param(
    default: Any = ...,
    help: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    unit: str = "",
    share: str = "",
    search: Search | tuple | None = None,
    names: str = "",
    main: bool = False,
    advanced: bool = False,
) -> Any:
    """Declare one parameter of a stage.

    Args:
        default: the value if none is given; `...` makes the parameter required.
        help: one line about its effect.
        ge, gt, le, lt: bounds of the value, or of each value of a tuple or dict.
        unit: of the value, such as "ms" or "tokens".
        share: "kept" or "removed" for a share of a model's size, which a line may give as a factor: `4x` for 4 times smaller.
        search: what a hyperparameter search may try: a `Search`, or a tuple: (low, high) for a number, the choices otherwise.
        names: what object of the session the parameter names: "model", "data", "function", "object" or "layers"
            (patterns over the model's module names). The parameter's value is the *name*; the object stays in the session.
            For a dict, what its keys name. "path" is a file or folder; a recipe's must be inside the working directory.
        main: one of the two or three options that matter most. Forms show these at the front, a number with a range (its search, else
            its bounds) with a slider, and fold all others.
        advanced: shown after the others in help and forms.

    Allowed types: bool, int, float, str, Literal[...] of strings or numbers, `X | None` of these, tuple[X, ...] and
    dict[str, X] of these; and a number or a word, `float | Literal["auto"]`.

    >>> class Mixed(Settings):
    ...     bits: dict[str, int] = param({}, "bits of the weights, by layer", ge=2, le=8, names="layers")
    >>> Mixed(bits={"encoder.*": 4, "head": 8}).bits["head"]
    8

    Raises:
        KdError: the search goes beyond the bounds, or the share is neither.
    """
    bounds = Bounds(ge, gt, le, lt)
    if isinstance(search, Search) and (beyond := outside(search.values(), bounds.set())):
        raise KdError(f"{search!r} goes to {beyond[0]}, which the parameter's bounds exclude: {bounds.set()}", "keep the search within ge, gt, le and lt")
    if share and share not in SHARES:
        raise KdError(f"share={share!r} is not one of {', '.join(SHARES)}", "leave it out unless the value is a share of a model's size")
    declared = search.data() if isinstance(search, Search) else list(search or ())
    extra = {"unit": unit, "share": share, "search": declared, "names": names, "main": main, "advanced": advanced}
    field = Field(default, description=help, json_schema_extra={key: value for key, value in extra.items() if value})
    if bounds.set():
        field.metadata.append(bounds)
    return field


class Settings(BaseModel):
    """Frozen named parameters with help and bounds: what stages and verbs have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False, defer_build=True)

    removed_options: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Options of earlier releases -> hints that say what to use instead."""

    @classmethod
    def _renamed_methods(cls) -> dict[str, str]:
        """Old name -> name, of methods that subclasses of other authors may still override or call by the old one."""
        return {"offers": "suggestions"}

    def __init_subclass__(cls, **facts: Any) -> None:
        super().__init_subclass__(**facts)
        for old, new in cls._renamed_methods().items():
            if new in vars(cls):
                setattr(cls, old, _forward(vars(cls)[new], f"{cls.__name__}.{old}", new))
            elif old in vars(cls):
                warn_renamed(f"{cls.__name__}.{old}", new)
                setattr(cls, new, vars(cls)[old])

    @classmethod
    def __pydantic_init_subclass__(cls, **facts: Any) -> None:
        """Keep pydantic from evaluating the annotations of facts again for each subclass."""
        for name, annotation in cls.__annotations__.items():
            if isinstance(annotation, str) and annotation.startswith("ClassVar"):
                cls.__annotations__[name] = ClassVar

    @pydantic.field_validator("*", mode="after")
    @classmethod
    def _freeze_mappings(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "" in value:
            raise ValueError("a name is empty")
        return FrozenDict(value)

    @classmethod
    def build(cls, title: str, values: dict[str, Any]) -> Self:
        """Make one from plain values; a wrong one is a `KdError` that names the option, its bound and its help."""
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            raise explain(cls, title, error) from error

    @classmethod
    def hints_on(cls, unknown: str) -> Sequence[str]:
        """What to use instead of an option that the class does not have, by field name; empty where nothing is known."""
        return cls.removed_options.get(unknown, ())

    @classmethod
    def suggestions(cls, parameter: str) -> Iterable[str]:
        """What completion and forms offer for a parameter, besides its choices and the session's objects."""
        return ()

    def changed(self) -> dict[str, Any]:
        """The parameters that differ from their defaults, in declared order."""
        fields = type(self).model_fields
        return {name: value for name, value in self if fields[name].is_required() or differ(value, fields[name].default)}


def _forward(method: Any, old: str, new: str) -> Any:
    """A method or class method that warns about its old name and calls `method`."""
    function = method.__func__ if isinstance(method, classmethod) else method

    @functools.wraps(function)
    def called_by_old_name(*args: Any, **kwargs: Any) -> Any:
        warn_renamed(old, new)
        return function(*args, **kwargs)

    return classmethod(called_by_old_name) if isinstance(method, classmethod) else called_by_old_name


Settings.offers = _forward(vars(Settings)["suggestions"], "Settings.offers", "suggestions")  # type: ignore[attr-defined]


def explain(settings: type[Settings], title: str, error: pydantic.ValidationError) -> KdError:
    """A validation error in the terms of the `%kd` line: each problem with its option, value and rule, and the option's help."""
    messages: list[str] = []
    hints: list[str] = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        field = settings.model_fields.get(name)
        if field is None:
            messages.append(f"{title} has no option {printable(option(name)[:80])}" if name else f"{title}: {problem['msg']}")
            hints += settings.hints_on(name)
            continue
        messages.append(f"{title}: {option(name)}{_problem(problem)}")
        hints.append(f"{option(name)}: {field.description}")
    return KdError("; ".join(messages), *hints)


def _problem(problem: Any) -> str:
    """What pydantic found wrong with a value; an item of a dict is named by its key."""
    rule = problem["msg"][:1].lower() + problem["msg"][1:]
    if problem["type"] == "missing":
        return f": {rule}"
    key = next((f" {printable(part[:80])}" for part in problem["loc"][1:2] if isinstance(part, str)), "")
    if key and problem["input"] is None:
        return f"{key} has no value; write{key}=VALUE"
    given = write_value(problem["input"]) if isinstance(problem["input"], float) else brief(problem["input"])
    return f"{key}={given}: {rule}" if key else f" {given}: {rule}"


def describe(settings: type[Settings]) -> str:
    """The first sentence of a class's docstring: its one-line help.

    >>> describe(Settings)
    'Frozen named parameters with help and bounds: what stages and verbs have in common.'
    """
    return (inspect.getdoc(settings) or "").partition("\n\n")[0].replace("\n", " ")


def option(name: str) -> str:
    """A field's name as an option; a name that Python keeps for itself has a `_` behind it, and one letter takes one dash.

    >>> option("learning_rate"), option("as_"), option("o")
    ('--learning-rate', '--as', '-o')
    """
    return f"-{name}" if len(name) == 1 else "--" + name.rstrip("_").replace("_", "-")

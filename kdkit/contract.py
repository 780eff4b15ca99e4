"""The stage contract: a technique is one frozen pydantic class.

Its fields are its parameters, its class attributes its declared facts, its `apply` the work. The fields alone feed the
magic's parser, `help`, completion, the wizard's form, the recipe and the search space.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from kdkit import __version__
from kdkit.errors import KdError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from kdkit.context import Context
    from kdkit.training import TrainPart

API = 1
"""The number of this contract; a stage declares the one it was written for, and one that declares none is taken at its word."""

OLDEST_API = 1
"""The oldest contract that is still spoken. New facts, needs and hook arguments are additions; what takes something away raises `API`."""

FAMILIES = ("distill", "prune", "decompose", "peft", "tune", "quantize", "encode", "convert")
"""The families kdkit speaks of, in the order in which they usually follow one another; a plugin may bring its own."""


class Trait(StrEnum):
    """A fact about a model that decides which stages may follow.

    A plugin may use words of its own beside these; the kit can check only what it knows how to see.
    """

    FLOAT_WEIGHTS = "float_weights"
    TRAINABLE = "trainable"
    FREE_STRUCTURE = "free_structure"
    MASKS_PENDING = "masks_pending"
    ADAPTERS_ATTACHED = "adapters_attached"
    FAKE_QUANT = "fake_quant"
    PACKED_WEIGHTS = "packed_weights"
    ONNX = "onnx"
    ENCODED = "encoded"


SIMULATED = frozenset({Trait.MASKS_PENDING, Trait.FAKE_QUANT})
"""Traits under which size and speed are simulated: shown, and not counted as won."""


@dataclass(frozen=True)
class Needs:
    """What a stage must be handed besides the model.

    Attributes:
        example: one batch of inputs (any data of the session gives it).
        calibration: unlabelled batches to stream once.
        train: batches to train on.
        labels: the training batches carry labels.
        teacher: a teacher model.
        tokenizer: a tokenizer.
        packages: importable packages, by import name.

    >>> Needs(train=True, packages=("peft",))
    Needs(train=True, packages=('peft',))
    """

    example: bool = False
    calibration: bool = False
    train: bool = False
    labels: bool = False
    teacher: bool = False
    tokenizer: bool = False
    packages: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """The needs that are set, by name, packages last."""
        return [item.name for item in fields(self) if item.name != "packages" and getattr(self, item.name)] + list(self.packages)

    def __or__(self, other: Needs) -> Needs:
        joined = {item.name: getattr(self, item.name) or getattr(other, item.name) for item in fields(self)}
        return Needs(**joined | {"packages": tuple(dict.fromkeys(self.packages + other.packages))})

    def __repr__(self) -> str:
        return f"Needs({', '.join(f'{item.name}={getattr(self, item.name)!r}' for item in fields(self) if getattr(self, item.name))})"


def param(
    default: Any = ...,
    help: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    unit: str = "",
    search: tuple | None = None,
    refers: str = "",
    advanced: bool = False,
) -> Any:
    """Declare one parameter of a stage.

    Args:
        default: its value when nothing is said; `...` makes it required.
        help: one line that tells what it does.
        ge, gt, le, lt: bounds.
        unit: of the value, such as "ms" or "tokens".
        search: what a search may try: (low, high) for a number, the choices otherwise.
        refers: what object of the session the parameter names: "model", "data", "function", "object" or "layers"
            (patterns over the model's module names). The parameter's value is the *name*; the object stays in the session.
        advanced: shown after the others in help and forms.

    Allowed types: bool, int, float, str, Literal[...] of strings or numbers, `X | None` of these, and tuple[X, ...] of these.
    """
    extra = {"unit": unit, "search": list(search) if search else None, "refers": refers, "advanced": advanced}
    return Field(default, description=help, ge=ge, gt=gt, le=le, lt=lt, json_schema_extra={key: value for key, value in extra.items() if value})


class Settings(BaseModel):
    """Frozen named parameters with help and bounds: what stages and verbs have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False)

    @classmethod
    def build(cls, title: str, values: dict[str, Any]) -> Self:
        """Make one from plain values; a wrong one is a `KdError` that names the option, its bound and its help."""
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            raise explain(cls, title, error) from error

    @classmethod
    def offers(cls, parameter: str) -> Iterable[str]:
        """What completion and forms offer for a parameter, besides its choices and the session's objects."""
        return ()

    def changed(self) -> dict[str, Any]:
        """The parameters that differ from their defaults, in declared order."""
        return {name: value for name, value in self if type(self).model_fields[name].is_required() or value != type(self).model_fields[name].default}


def explain(settings: type[Settings], title: str, error: pydantic.ValidationError) -> KdError:
    """Say a validation error in the words of the `%kd` line."""
    from kdkit.lines import option as spelled

    messages, hints = [], []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        option = spelled(name)
        field = settings.model_fields.get(name)
        if field is None:
            messages.append(f"{title}: {problem['msg']}" if not name else f"{title} has no option {option}")
            continue
        said = f" {problem['input']!r}" if problem["type"] != "missing" else ""
        messages.append(f"{title}: {option}{said}: {problem['msg'][:1].lower()}{problem['msg'][1:]}")
        hints.append(f"{option}: {field.description}")
    return KdError("; ".join(messages), *hints)


class Stage(Settings):
    """One technique with its parameters: an immutable step of a pipeline.

    A subclass sets `id` ("family.technique"), declares its parameters with `param`, and writes `apply`. See
    `kdkit.hookspecs.kdkit_stages` for how it is published.

    >>> class Halve(Stage):
    ...     '''Multiply every weight by a factor.'''
    ...     id: ClassVar = "tune.halve"
    ...     factor: float = param(0.5, "what every weight is multiplied by", gt=0)
    ...     def apply(self, model, context):
    ...         for weight in model.parameters():
    ...             weight.data.mul_(self.factor)
    >>> Halve(factor=0.25).line()
    'tune halve --factor 0.25'
    """

    id: ClassVar[str] = ""
    api: ClassVar[int] = API
    version: ClassVar[int] = 1
    needs: ClassVar[Needs] = Needs()
    requires: ClassVar[Iterable[str]] = frozenset()
    forbids: ClassVar[Iterable[str]] = frozenset()
    adds: ClassVar[Iterable[str]] = frozenset()
    removes: ClassVar[Iterable[str]] = frozenset()
    bridge: ClassVar[bool] = False
    """Whether the kit may insert the stage, with its defaults, where a later stage needs the traits it adds or removes."""
    may_change_nothing: ClassVar[bool] = False
    """Whether leaving the model as it was is a result; otherwise it is an error."""
    keeps_output: ClassVar[bool] = True
    """Whether the outputs keep their structure and shapes; the kit checks it on the example batch."""
    sample_options: ClassVar[str] = ""
    """What the example line of `help` says too, beside the first option: such as what an honest trial wants."""
    tried_as: ClassVar[str] = ""
    """The options by which `kdkit.testing` tries it, where no model of its zoo suits the defaults."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Do the work on `model`, a private copy, and return it, or another model; None stands for the copy."""
        raise KdError(f"{type(self).__name__} has no apply", "write apply(self, model, context) that changes or returns the model")

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Problems that can be known before any work, a line each; cheap, and without data."""
        return ()

    def needed(self) -> Needs:
        """What this stage needs with these parameters; `needs` unless it depends on them."""
        return self.needs

    def references(self) -> Iterator[tuple[str, str, str]]:
        """(parameter, kind, name) for each object of the session that the stage names; a subclass may leave out what it makes itself."""
        for name, info in type(self).model_fields.items():
            kind = (info.json_schema_extra or {}).get("refers", "")  # type: ignore[union-attr]
            value = getattr(self, name)
            if kind and kind != "layers" and value:
                yield from ((name, str(kind), each) for each in (value if isinstance(value, tuple) else (value,)))

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """What the model will be like, without training or data: by default by applying the stage to a throw-away copy."""
        changed = self.apply(model, context)
        return Forecast(model if changed is None else changed)

    @property
    def family(self) -> str:
        """The family, such as "prune"."""
        return self.id.partition(".")[0]

    @property
    def technique(self) -> str:
        """The technique within its family, such as "channels"."""
        return self.id.partition(".")[2]

    @property
    def title(self) -> str:
        """How messages name it: "prune channels"."""
        return self.id.replace(".", " ", 1)

    def line(self) -> str:
        """The stage as one line of a `%%kd` cell."""
        from kdkit.lines import write_options

        return " ".join([self.family, self.technique, *write_options(self)])

    def __str__(self) -> str:
        return self.line()


@dataclass(frozen=True)
class Forecast:
    """What a stage would leave behind.

    Attributes:
        model: the model's structure afterwards (weights may be anything).
        size_bytes: bytes on disk, where the structure alone does not tell.
        macs_ratio: MACs afterwards over MACs of `model`, where the structure alone does not tell.
    """

    model: nn.Module
    size_bytes: int | None = None
    macs_ratio: float | None = None


def describe(settings: type[Settings]) -> str:
    """The first sentence of a class's docstring: its one-line help.

    >>> describe(Stage)
    'One technique with its parameters: an immutable step of a pipeline.'
    """
    return (inspect.getdoc(settings) or "").partition("\n\n")[0].replace("\n", " ")


LINE_OPTIONS = frozenset({"on", "as_", "seed", "dry_run", "o", "quiet", "debug"})
"""What every `%kd` line may say beside the stage's own options; a stage calls its parameters otherwise."""


def foreign(api: Any) -> Iterator[str]:
    """Why this kdkit does not speak a contract, by its number; nothing when it does."""
    if not isinstance(api, int):
        yield f"its api {api!r} is not the number of a contract; this kdkit {__version__} speaks {API}"
    elif api > API:
        yield f"written for contract {api}, and this kdkit {__version__} speaks no later one than {API}; update kdkit: pip install -U kdkit"
    elif api < OLDEST_API:
        yield f"written for contract {api}, and this kdkit {__version__} speaks none before {OLDEST_API}; update the plugin"


def _can_be_handed(function: Callable, count: int) -> bool:
    """Whether a function can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\.[a-z][a-z0-9]*(-[a-z0-9]+)*")


def faults(stage: type[Stage]) -> Iterator[str]:
    """What keeps a class from being a stage, a line each; nothing when it is whole."""
    if not (isinstance(stage, type) and issubclass(stage, Stage)):
        yield f"{stage!r} is not a subclass of kdkit.Stage"
        return
    where = stage.__qualname__ if stage.__module__ == "__main__" else f"{stage.__module__}.{stage.__qualname__}"
    if not _ID.fullmatch(str(stage.id)):
        yield f'{where}: id {stage.id!r} is not "family.technique" in lower-case words, such as prune.mine'
    yield from (f"{where}: {fault}" for fault in foreign(stage.api))
    if not isinstance(stage.needs, Needs):
        yield f"{where}: needs is a {type(stage.needs).__name__}; write needs = kdkit.Needs(train=True) or the like"
    for name in ("requires", "forbids", "adds", "removes"):
        if isinstance(getattr(stage, name), str):
            yield f"{where}: {name} is one word where a set is wanted; write {name} = {{{str(getattr(stage, name))!r}}}"
    if stage.apply is Stage.apply:
        yield f"{where}: has no apply(self, model, context)"
    for name in ("apply", "check", "forecast", "part"):
        if hasattr(stage, name) and not _can_be_handed(getattr(stage, name), 3):
            yield f"{where}: {name}{inspect.signature(getattr(stage, name))} can't be handed what it is for; write {name}(self, model, context)"
    if "__doc__" not in vars(stage) or not stage.__doc__:
        yield f"{where}: has no docstring; its first sentence is the help line"
    for name, field in stage.model_fields.items():
        if name in LINE_OPTIONS:
            yield f"{where}: parameter {name} is an option of every %kd line; call it otherwise"
        if not field.description:
            yield f"{where}: parameter {name} has no help; declare it as {name} = param(default, help)"
    from kdkit.lines import field_faults

    yield from (f"{where}: {fault}" for fault in field_faults(stage))


def stage(id: str, **facts: Any) -> Callable[[Callable], type[Stage]]:
    """Make a stage of a function, or complete a class derived from `Stage`, and offer it in this session.

    Running the cell again replaces it. In the module of an installed plugin nothing is offered: there the hook
    `kdkit_stages` names what this returns.

    Args:
        id: "family.technique".
        facts: class attributes of the stage: needs, requires, forbids, adds, removes, ...

    A function takes model, context and its parameters, each with an annotation and a default, plain or made by `param`.

    Raises:
        KdError: it is not written so, or the stage is not whole.

    >>> @stage("prune.smallest")
    ... def smallest(model, context, *, share: float = param(0.1, "share of weights to zero", ge=0, lt=1)):
    ...     "Zero the smallest weights."
    >>> smallest(share=0.2).line()
    'prune smallest --share 0.2'

    >>> @stage("tune.halve", requires={Trait.FLOAT_WEIGHTS})
    ... class Halve(Stage):
    ...     "Multiply every weight by a factor."
    ...     factor: float = param(0.5, "what every weight is multiplied by", gt=0)
    ...     def apply(self, model, context): ...
    >>> Halve(factor=0.25).line()
    'tune halve --factor 0.25'
    """
    if not isinstance(id, str):
        raise KdError("@kdkit.stage wants to know the id of the stage", f'write @kdkit.stage("prune.{getattr(id, "__name__", "mine").lower()}")')
    _check_facts(id, facts)

    def make(written: Callable) -> type[Stage]:
        from kdkit.plugins import manager, published

        made = _completed(written, id, facts) if isinstance(written, type) else _of_function(written, id, facts)
        if not published(made.__module__):
            manager().offer(made)
        return made

    return make


def _check_facts(id: str, facts: Iterable[str]) -> None:
    known = sorted(Stage.__class_vars__ - {"id", "model_config"})
    for name in facts:
        if name not in known:
            raise KdError(f"stage({id!r}): a stage has no fact {name!r}", did_you_mean(name, known), f"facts: {', '.join(known)}")


def _completed(written: type, id: str, facts: dict[str, Any]) -> type[Stage]:
    if not issubclass(written, Stage):
        raise KdError(f"{written.__name__} is a class, but not a kdkit.Stage", f"write class {written.__name__}(kdkit.Stage), or a function of model and context")
    for name, value in {"id": id, **facts}.items():
        setattr(written, name, value)
    return written


def _of_function(function: Callable, id: str, facts: dict[str, Any]) -> type[Stage]:
    options = _options(function)

    def apply(self: Stage, model: nn.Module, context: Context) -> nn.Module | None:
        return function(model, context, **dict(self))

    body: dict[str, Any] = {"id": id, "apply": apply, "source": function, **facts}
    annotations = dict.fromkeys(body, ClassVar) | {item.name: item.annotation for item in options}
    body |= {item.name: _declared(item) for item in options}
    body |= {"__module__": function.__module__, "__qualname__": function.__qualname__, "__doc__": function.__doc__, "__annotations__": annotations}
    try:
        return type(Stage)(function.__name__.title().replace("_", ""), (Stage,), body)  # type: ignore[misc]
    except pydantic.errors.PydanticUserError as error:
        raise KdError(
            f"{function.__name__}: {str(error).splitlines()[0].partition('. Set `')[0]}",  # what follows is for authors of pydantic models
            "a parameter is plain data; an object is named: teacher: str = kdkit.param('teacher', 'who teaches', refers='model')",
        ) from error


def _options(function: Callable) -> list[inspect.Parameter]:
    """The parameters of a function behind model and context.

    Raises:
        KdError: there are none of these two, or a parameter can't be an option.
    """
    given = list(inspect.signature(function, eval_str=True).parameters.values())
    loose = [item for item in given if item.kind in (item.VAR_POSITIONAL, item.VAR_KEYWORD, item.POSITIONAL_ONLY)]
    if len(given) < 2 or loose or given[1].default is not inspect.Parameter.empty:
        raise KdError(f"{function.__name__}{inspect.signature(function)} is not the form of a stage", "write def name(model, context, *, ratio: float = 0.5)")
    options = given[2:]
    for item in options:
        if item.annotation is item.empty:
            raise KdError(f"{function.__name__}: {item.name} has no type", f"write {item.name}: float = kdkit.param(0.5, 'what it does')")
        if item.name.startswith("_"):
            raise KdError(f"{function.__name__}: a parameter can't be named {item.name}, as a line would say --{item.name}", f"call it {item.name.strip('_') or 'ratio'}")
        if hasattr(Stage, item.name):
            raise KdError(f"{function.__name__}: a parameter can't be named {item.name}, as every stage has that", "choose another name")
    return options


def _declared(item: inspect.Parameter) -> Any:
    plain = not isinstance(item.default, pydantic.fields.FieldInfo)
    return param(... if item.default is item.empty else item.default, item.name.replace("_", " ")) if plain else item.default


class TrainStage(Stage):
    """A stage that trains: it says what to train for, the kit's one loop does the rest."""

    epochs: float = param(1.0, "passes over the training data", gt=0, search=(1, 10))
    steps: int | None = param(None, "optimizer steps, instead of epochs", ge=1)
    learning_rate: float = param(1e-3, "of the optimizer, at its highest", gt=0, search=(1e-5, 1e-1))
    optimizer: Literal["adamw", "adam", "sgd"] = param("adamw", "sgd goes with momentum 0.9")
    weight_decay: float = param(0.0, "pull of the weights towards zero", ge=0)
    schedule: Literal["cosine", "linear", "constant"] = param("cosine", "how the learning rate goes after the warm-up")
    warmup: float = param(0.0, "share of the steps in which the learning rate rises from zero", ge=0, lt=1)
    data: str = param("train", "the session's data to train on", refers="data")
    batch_size: int | None = param(None, "items a batch; as the data comes when not said", ge=1)
    accumulate: int = param(1, "batches whose gradients make one optimizer step", ge=1, advanced=True)
    clip: float | None = param(None, "largest norm of the gradient", gt=0, advanced=True)
    precision: Literal["fp32", "bf16", "fp16"] = param("fp32", "of the arithmetic; the weights stay as they are", advanced=True)
    validation: str | None = param(None, "data to choose the best epoch and to stop early on; never the test data", refers="data", advanced=True)
    patience: int | None = param(None, "stop after so many epochs without a better validation figure", ge=1, advanced=True)
    keep: Literal["last", "best"] = param("last", "the epoch whose weights are kept; best wants validation data", advanced=True)
    checkpoint: str | None = param(None, "folder where each epoch is written, so that --resume can go on from it", advanced=True)
    resume: bool = param(False, "go on from the last epoch of an interrupted run of this same stage", advanced=True)

    needs: ClassVar[Needs] = Needs(train=True)
    requires: ClassVar[Iterable[str]] = frozenset({Trait.TRAINABLE})
    shares_loop: ClassVar[bool] = True
    """Whether it may stand in a `together` group; False where `apply` is more than one fit, of which a group would leave out the rest."""

    def conflicts(self) -> Iterator[str]:
        """Loop options that don't go together, a line each."""
        for name, asked in (("keep", self.keep == "best"), ("patience", self.patience is not None)):
            if asked and self.validation is None:
                yield f"--{name} {getattr(self, name)} wants validation data: --validation {{held_out_loader}}"

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """What the loop options lack; a subclass with more to check adds its own to these."""
        return self.conflicts()

    def learner(self, model: nn.Module, context: Context) -> nn.Module:
        """What is trained: the model at hand, unless the stage brings another."""
        return model

    def part(self, model: nn.Module, context: Context) -> TrainPart:
        """What this stage brings into the loop: its loss terms, modules and hooks."""
        raise KdError(f"{type(self).__name__} has no part", "write part(self, model, context) that returns a kdkit.TrainPart")

    def apply(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Train `model` in the kit's loop."""
        return context.fit(model, [self])

    def lead(self, model: nn.Module, context: Context, stages: list[TrainStage]) -> nn.Module | None:
        """Train a `together` group, of which this stage is the first, in one loop."""
        return context.fit(model, stages)

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """Training changes no structure."""
        return Forecast(self.learner(model, context))

"""What a view is: options, and what they show of a session."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from pydantic import model_validator

from kdkit.parameters.settings import Settings
from kdkit.parameters.value_types import kind, object_kind

if TYPE_CHECKING:
    from kdkit.session.session import Session


class Shown(Protocol):
    """What a view returns: it has a short stable text and HTML."""

    def __repr__(self) -> str: ...

    def _repr_html_(self) -> str: ...


class View(Settings):
    """A picture or table of a session's versions.

    A subclass declares its options with `param`, and computes in `of`. From that it gets a verb with completion and help
    (`%kd waterfall --width 3`), a form in the wizard, and `session.show("waterfall --width 3")`. The module that declares it must
    not import torch, so that completing a line stays fast: import what computes inside `of`.

    >>> from kdkit.display import Table
    >>> class Waterfall(View):
    ...     "How the size changes from version to version."
    ...     def of(self, session):
    ...         return Table(["version", "size"], [[version.name, version["size"]] for version in session.versions])
    >>> Waterfall.name
    'waterfall'
    """

    name: ClassVar[str] = ""
    """The verb's word, and the first word of the line; default: the class's name in lower case, with dashes."""
    positional: ClassVar[tuple[str, ...]] = ()
    """Options that may be given by position, in order."""
    example_line: ClassVar[str] = ""
    """A line that shows how to use it; default: its name alone."""
    tab: ClassVar[str] = "Compare"
    """Title of the wizard's tab that has its form."""
    method: ClassVar[str] = ""
    """Name of the deprecated method of `Session` that it replaced."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Parameters of that method, by the names that they had, and the options that they are now."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()
        if "example_line" not in vars(cls):
            cls.example_line = f"%kd {cls.name}"

    def of(self, session: Session) -> Shown:
        """What this view shows of a session. The models are copies: what the view changes in them is lost.

        A view that works long does so in `with session.working("title") as context`, and calls `context.progress`.
        """
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        """Let Python code pass versions themselves, or their numbers, and one value where several are allowed."""
        if not isinstance(values, Mapping):
            return values
        return {name: _plain(cls, name, value) if name in cls.model_fields else value for name, value in values.items()}

    @classmethod
    def from_call(cls, *arguments: Any, **named: Any) -> tuple[Self, dict[str, Any]]:
        """The view that a call of the deprecated method stands for, and the objects that the call passed.

        Raises:
            KdError: there is no such parameter, or a value is wrong.
        """
        first, *_ = cls.model_fields
        values: dict[str, Any] = {first: arguments} if kind(cls, first).many and arguments else dict(zip(cls.model_fields, arguments, strict=False))
        values |= {cls.renamed.get(name, name): value for name, value in named.items()}
        objects: dict[str, Any] = {}
        for name, value in values.items():
            what = object_kind(cls, name) if name in cls.model_fields else ""
            if what in ("data", "model") and not isinstance(_version_name(value), str):
                values[name] = "new data" if what == "data" else f"the {name}"
                objects[values[name]] = value
        return cls.build(cls.name, values), objects


def _plain(view: type[View], name: str, value: Any) -> Any:
    if kind(view, name).many and value is not None:
        single = isinstance(value, str | int) or _version_name(value) is not value
        value = (value,) if single else tuple(value)
    if object_kind(view, name) not in ("version", "model"):
        return value
    return tuple(map(_version_name, value)) if isinstance(value, tuple) else _version_name(value)


def _version_name(value: Any) -> Any:
    """The name of a version that is given as itself or by its number; any other value as it is."""
    number = value if isinstance(value, int) else getattr(value, "number", None) if hasattr(value, "report") else None
    return value if number is None or isinstance(number, bool) else f"@{number}"

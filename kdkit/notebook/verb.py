"""The verbs of `%kd`: the base class, and the registry of all that are declared.

A verb is declared once: its fields are its options, its docstring is its help, `run` does the work. The parser, help,
completion and the wizard read these declarations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from kdkit.parameters.command_line import write_values
from kdkit.parameters.settings import Settings, option
from kdkit.stages.line_options import RESERVED_WORDS

if TYPE_CHECKING:
    from kdkit.notebook.workspace import Workspace


class Verb(Settings):
    """The first word of a `%kd` line.

    Args:
        generated: the class was made from another declaration, such as a view's. It is not registered by itself (see
            `add_source`), and its word need not be reserved.

    Raises:
        TypeError: the word of a declared verb is not in `RESERVED_WORDS`.
    """

    # a notebook uses few of the verbs: the validator of each is built at its first use
    model_config = ConfigDict(defer_build=True)

    positional: ClassVar[tuple[str, ...]] = ()
    """Fields that can be given by position, in order."""
    example_line: ClassVar[str] = ""
    """A line that uses the verb."""
    tab: ClassVar[str] = ""
    """Title of the wizard's tab that shows a form for this verb."""
    generated: ClassVar[bool] = False

    def __init_subclass__(cls, *, generated: bool = False, **facts: Any) -> None:
        super().__init_subclass__(**facts)
        cls.generated = generated
        if not generated and cls.word() not in RESERVED_WORDS:
            raise TypeError(f"verb {cls.word()!r} is not reserved, so a plugin's family could have the same name; add it to RESERVED_WORDS")

    @classmethod
    def word(cls) -> str:
        """The verb as written in a line.

        >>> from kdkit.notebook.verbs.plugins import NewPlugin
        >>> NewPlugin.word()
        'new-plugin'
        """
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    def run(self, workspace: Workspace) -> Any:
        """Do the work and return the result to display."""
        raise NotImplementedError


_sources: list[Callable[[], Iterable[type[Verb]]]] = []


def add_source(source: Callable[[], Iterable[type[Verb]]]) -> None:
    """Register a function that returns more verbs. It is called each time the verbs are listed, so it can follow what plugins bring."""
    _sources.append(source)


def verbs() -> dict[str, type[Verb]]:
    """Every verb by its word; a declared verb wins over one of a source. `kdkit.notebook.verbs` declares kdkit's own."""
    return {verb.word(): verb for source in _sources for verb in source()} | _declared_verbs()


def _declared_verbs() -> dict[str, type[Verb]]:
    return {verb.word(): verb for verb in Verb.__subclasses__() if not verb.generated}


def find_verb(word: Any) -> type[Verb] | None:
    """The verb of a word; None if there is none. Plugins are loaded only for a word that kdkit does not declare itself.

    >>> find_verb("nonsense")
    """
    return (_declared_verbs().get(word) or verbs().get(word)) if isinstance(word, str) else None


def line_of(verb: type[Verb], values: Mapping[str, Any]) -> str:
    """The `%kd` line of a verb with these values, positional where possible.

    >>> from kdkit.notebook.verbs.versions import Save
    >>> line_of(Save, {"path": "small/", "version": "@slim"})
    '%kd save small/ @slim'
    """
    words, rest = ["%kd", verb.word()], dict(values)
    for name in verb.positional:
        flag, *written = write_values(verb, {name: rest[name]}) if name in rest else [""]
        if flag != option(name) or not written:
            break
        words += written
        del rest[name]
    return " ".join([*words, *write_values(verb, rest)])

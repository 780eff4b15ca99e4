"""Completion of `%kd` lines and `%%kd` cells, from the kernel: works wherever IPython completes.

The completions come from the declarations of verbs and stages. Techniques are looked up only after torch was imported, so that
Tab never waits seconds for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion, context_matcher

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.parameters.settings import Settings

_COMMAND = re.compile(r"\s*(?:[^'\"=]+=\s*)?%kd\s(?P<rest>.*)", re.DOTALL)
_CELL = re.compile(r"\s*%%kd(?:\s(?P<rest>.*))?\Z", re.DOTALL)
_NOTHING: dict[str, Any] = {"completions": [], "suppress": False}

Candidate = tuple[str, str]
"""A completion and its kind."""


def matcher(shell: InteractiveShell) -> Callable[[Any], Any]:
    """The matcher of one shell, for `Completer.custom_matchers`."""

    @context_matcher(identifier="kdkit")
    def kdkit_matcher(context: Any) -> Any:
        try:
            found = complete([*context.full_text.split("\n")[: context.cursor_line], context.text_until_cursor], shell)
        except Exception:
            # Tab in an unfinished line must never print a traceback
            return _NOTHING
        if found is None:
            return _NOTHING
        fragment, candidates = found
        return {"completions": [SimpleCompletion(text=text, type=kind) for text, kind in candidates], "matched_fragment": fragment, "suppress": True, "ordered": True}

    return kdkit_matcher


def complete(lines: Sequence[str], shell: InteractiveShell) -> tuple[str, list[Candidate]] | None:
    """The completions at the end of `lines`, the text up to the cursor: (the fragment to complete, the completions).

    None if the text is not kdkit's.
    """
    cell = _CELL.match(lines[0])
    if cell and len(lines) > 1:
        rest, place = lines[-1], "body"
    elif cell and cell["rest"] is not None:
        rest, place = cell["rest"], "cell"
    elif not cell and (command := _COMMAND.match(lines[-1])):
        rest, place = command["rest"], "line"
    else:
        return None
    fragment = re.search(r"\S*\Z", rest)[0]  # type: ignore[index]
    words = _words(rest[: len(rest) - len(fragment)])
    from kdkit.notebook.variables import variables

    opened = re.search(r"(\{|\$)(\w*)\Z", rest)
    if opened and rest.count("{", 0, opened.end()) != rest.count("}", 0, opened.end()) + (opened[1] == "$"):
        return opened[2], _starting(opened[2], ((name + ("}" if opened[1] == "{" else ""), "object") for name in sorted(variables(shell))))
    flag, joined, value = fragment.partition("=")
    if joined and fragment.startswith("-"):
        owner = _Words(shell, place, [*words, flag])
        return _of_entry(value, owner, owner.named_last()) if "=" in value else (value, _starting(value, owner.values_of_last()))
    if joined and (field := _Words(shell, place, words).mapping_waiting()):
        return _of_entry(fragment, _Words(shell, place, words), field)
    return fragment, _starting(fragment, _Words(shell, place, words).candidates(fragment))


def _of_entry(entry: str, words: _Words, field: str) -> tuple[str, list[Candidate]]:
    """The value of a `name=value` word, and what it may be."""
    value = entry.rpartition("=")[2]
    return value, _starting(value, words.entry_values(field))


def _words(text: str) -> list[str]:
    from kdkit.errors import KdError
    from kdkit.parameters.tokenizer import split

    try:
        return [str(word) if isinstance(word, str) or not word.flag else f"{word.flag}={word}" for word in split(text)]
    except KdError:
        return text.split()


def _starting(fragment: str, candidates: Iterable[Candidate]) -> list[Candidate]:
    return [candidate for candidate in dict.fromkeys(candidates) if candidate[0].startswith(fragment)]


class _Words:
    """The words before the cursor, and the completions of the next one."""

    def __init__(self, shell: InteractiveShell, place: str, words: list[str]):
        import kdkit.notebook.verbs  # noqa: F401 - declares the verbs
        from kdkit.notebook.verb import verbs
        from kdkit.stages.line_options import Line, Running

        self.shell, self.place, self.words = shell, place, words
        self.verbs = verbs() if place == "line" else {}
        self.owners: tuple[type[Settings], ...] = ()
        self.positional: Sequence[str] = ()
        if place == "cell":
            self.owners, self.rest = (Running, Line), words
        elif words and words[0] in self.verbs:
            verb = self.verbs[words[0]]
            self.owners, self.positional, self.rest = (verb, Line), verb.positional, words[1:]
        elif len(words) > 1 and (made := _stages().get(".".join(words[:2]))):
            self.owners, self.rest = (made, Running, Line) if place == "line" else (made,), words[2:]
        elif place == "line":
            self.owners, self.rest = (self.verbs["status"], Line), words

    def candidates(self, fragment: str) -> Iterator[Candidate]:
        """The completions of the next word."""
        if not self.words and not fragment.startswith("-") and self.place != "cell":
            yield from self._first()
        elif len(self.words) == 1 and self.words[0] not in self.verbs and self.place != "cell":
            yield from ((id.partition(".")[2], "technique") for id in _stages() if id.startswith(f"{self.words[0]}."))
        elif self.owners:
            waiting, more = self._waiting()
            if waiting:
                yield from self._values(waiting)
            if more or not waiting:
                if not fragment.startswith("-"):
                    yield from (candidate for name in self._free() for candidate in self._values(name))
                yield from self._options()

    def named_last(self) -> str:
        """The field of the option that the words end with; empty where it is unknown."""
        return self._spelled().get(self.words[-1], "")

    def mapping_waiting(self) -> str:
        """The field that takes `name=value` words here; empty where none does."""
        from kdkit.parameters.value_types import kind

        name = self._waiting()[0] if self.owners else ""
        return name if name and kind(self._owner(name), name).mapping else ""

    def entry_values(self, name: str) -> Iterator[Candidate]:
        """The values that a name of a mapping may have."""
        from kdkit.parameters.value_types import kind

        this = kind(self._owner(name), name) if name else None
        yield from ((str(choice), "value") for choice in (() if this is None else this.choices or (("true", "false") if this.base is bool else ())))

    def values_of_last(self) -> Iterator[Candidate]:
        """The values of the option that the words end with."""
        if name := self.named_last():
            yield from self._values(name)

    def _first(self) -> Iterator[Candidate]:
        from kdkit.stages.stage import FAMILIES

        yield from ((word, "verb") for word in self.verbs)
        yield from ((family, "family") for family in dict.fromkeys(id.partition(".")[0] for id in _stages()) or FAMILIES)
        if self.place == "body":
            yield "together:", "group"

    def _spelled(self) -> dict[str, str]:
        from kdkit.parameters.settings import option
        from kdkit.parameters.value_types import object_kind

        return {option(name): name for owner in self.owners for name in owner.model_fields if object_kind(owner, name) != "others"}

    def _owner(self, name: str) -> type[Settings]:
        return next(owner for owner in self.owners if name in owner.model_fields)

    def _waiting(self) -> tuple[str, bool]:
        """(the field whose value is being written, whether another word is possible here as well)."""
        from kdkit.parameters.value_types import kind

        for distance, word in enumerate(reversed(self.rest)):
            name = self._spelled().get(word, "")
            if name and not kind(self._owner(name), name).is_flag:
                return (name, distance > 0) if distance == 0 or kind(self._owner(name), name).several else ("", True)
            if word.startswith("-"):
                break
        return "", True

    def _free(self) -> Sequence[str]:
        """The next positional field."""
        from kdkit.parameters.value_types import kind

        taken = len([word for word, before in zip(self.rest, ["", *self.rest], strict=False) if not word.startswith("-") and not before.startswith("-")])
        many = self.positional and kind(self._owner(self.positional[-1]), self.positional[-1]).several
        return self.positional[min(taken, len(self.positional) - 1) :][:1] if many else self.positional[taken : taken + 1]

    def _options(self) -> Iterator[Candidate]:
        from kdkit.parameters.value_types import kind

        for flag, name in self._spelled().items():
            if flag in self.rest:
                continue
            yield flag, "option"
            this = kind(self._owner(name), name)
            if this.is_flag and self._owner(name).model_fields[name].default:
                yield "--no-" + flag[2:], "option"

    def _values(self, name: str) -> Iterator[Candidate]:
        from kdkit.parameters.value_text import write_value
        from kdkit.parameters.value_types import kind, object_kind

        owner = self._owner(name)
        this, what = kind(owner, name), object_kind(owner, name)
        if this.mapping:
            yield from ((f"{word}=", found) for word, found in (*((text, "name") for text in owner.suggestions(name)), *self._referred(what, this.base is object)))
            return
        yield from ((str(choice), "value") for choice in (*this.choices, *this.words, *owner.suggestions(name)))
        if this.base is bool:
            yield from (("true", "value"), ("false", "value"))
        yield from self._referred(what, this.base is object)
        default = owner.model_fields[name].default
        if this.base in (int, float) and not this.choices and default not in (None, *this.words) and not owner.model_fields[name].is_required():
            yield write_value(default), "value"

    def _referred(self, what: str, bare: bool) -> Iterator[Candidate]:
        from kdkit.notebook.variables import variables
        from kdkit.notebook.workspace import session as session_of

        session = session_of(self.shell)
        if session is not None and what in ("version", "model"):
            yield from ((version.name, "version") for version in reversed(session.versions))
        if session is not None and what == "removed":
            yield from ((version.name, "version") for version in reversed(session.removed))
        if what == "session":
            yield from self._sessions()
        if session is not None and what == "figure":
            yield from ((name, "figure") for name in session.compare().figures)
        if session is not None and what == "layers" and session.head.model is not None:
            yield from ((name, "layer") for name, _ in session.head.model.named_modules() if name)
        if what in ("model", "data", "function", "object"):
            if session is not None and not bare:
                yield from ((name, "object") for name in session.objects)
            yield from ((name if bare else "{" + name + "}", "object") for name in sorted(variables(self.shell)))
        if what in ("family", "topic"):
            yield from self._topics(what)
        if what == "plugin" and "torch" in sys.modules:
            from kdkit.plugins.manager import manager

            yield from ((plugin.name, "plugin") for plugin in manager().plugins())
        if what == "technique" and "torch" in sys.modules:
            from kdkit.plugins.manager import manager

            yield from ((id, "technique") for id in manager().stages() if manager().provider(id).name == "notebook")
        if what == "path":
            yield from ((path.name + "/" * path.is_dir(), "path") for path in sorted(Path().iterdir()) if not path.name.startswith("."))

    def _sessions(self) -> Iterator[Candidate]:
        from kdkit.notebook.variables import sessions_in
        from kdkit.notebook.workspace import workspace_of

        sessions = workspace_of(self.shell).sessions
        yield from ((name, "session") for name in sessions.by_name)
        if "torch" in sys.modules:
            yield from ((name, "session") for name, session in sessions_in(self.shell) if sessions.of(session) is None)

    def _topics(self, what: str) -> Iterator[Candidate]:
        if what == "topic" and self.rest:
            yield from ((id.partition(".")[2], "technique") for id in _stages() if id.startswith(f"{self.rest[0]}."))
            return
        if what == "topic":
            yield from ((word, "verb") for word in self.verbs)
        yield from ((family, "family") for family in dict.fromkeys(id.partition(".")[0] for id in _stages()))


def _stages() -> dict[str, Any]:
    if "torch" not in sys.modules:
        return {}
    from kdkit.plugins.manager import manager

    return manager().stages()

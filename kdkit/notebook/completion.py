"""Completion of `%kd` lines and `%%kd` cells, from the kernel: works wherever IPython completes.

What is offered comes from the declarations of verbs and stages. Techniques are looked up only once torch is there: nobody
waits seconds for a Tab.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion, context_matcher

from kdkit.notebook.namespace import variables

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.contract import Settings

_COMMAND = re.compile(r"\s*(?:[^'\"=]+=\s*)?%kd\s(?P<rest>.*)", re.DOTALL)
_CELL = re.compile(r"\s*%%kd(?:\s(?P<rest>.*))?\Z", re.DOTALL)
_NOTHING: dict[str, Any] = {"completions": [], "suppress": False}

Offer = tuple[str, str]
"""A completion and its kind."""


def matcher(shell: InteractiveShell) -> Callable[[Any], Any]:
    """The matcher of one shell, to be put among `Completer.custom_matchers`."""

    @context_matcher(identifier="kdkit")
    def kdkit_matcher(context: Any) -> Any:
        try:
            found = complete([*context.full_text.split("\n")[: context.cursor_line], context.text_until_cursor], shell)
        except Exception:
            # a Tab in a half-written line must never print a traceback
            return _NOTHING
        if found is None:
            return _NOTHING
        fragment, offers = found
        return {"completions": [SimpleCompletion(text=text, type=kind) for text, kind in offers], "matched_fragment": fragment, "suppress": True, "ordered": True}

    return kdkit_matcher


def complete(lines: Sequence[str], shell: InteractiveShell) -> tuple[str, list[Offer]] | None:
    """What could stand at the end of `lines`, the text up to the cursor: (what is there of it, the offers).

    None where the text is none of kdkit's.
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
    opened = re.search(r"(\{|\$)(\w*)\Z", rest)
    if opened and rest.count("{", 0, opened.end()) != rest.count("}", 0, opened.end()) + (opened[1] == "$"):
        return opened[2], _starting(opened[2], ((name + ("}" if opened[1] == "{" else ""), "object") for name in sorted(variables(shell))))
    before, joined, value = fragment.rpartition("=")
    if joined and before.startswith("-"):
        return value, _starting(value, _Words(shell, place, [*words, before]).values_of_last())
    return fragment, _starting(fragment, _Words(shell, place, words).offers(fragment))


def _words(text: str) -> list[str]:
    from kdkit.errors import KdError
    from kdkit.lines import split

    try:
        return [str(word) if isinstance(word, str) or not word.flag else f"{word.flag}={word}" for word in split(text)]
    except KdError:
        return text.split()


def _starting(fragment: str, offers: Iterable[Offer]) -> list[Offer]:
    return [offer for offer in dict.fromkeys(offers) if offer[0].startswith(fragment)]


class _Words:
    """The words before the cursor, and what may follow them."""

    def __init__(self, shell: InteractiveShell, place: str, words: list[str]):
        from kdkit.notebook.verbs import Line, Running, verbs

        self.shell, self.place, self.words = shell, place, words
        self.verbs = verbs() if place == "line" else {}
        self.owners: tuple[type[Settings], ...] = ()
        self.places: Sequence[str] = ()
        if place == "cell":
            self.owners, self.rest = (Running, Line), words
        elif words and words[0] in self.verbs:
            verb = self.verbs[words[0]]
            self.owners, self.places, self.rest = (verb, Line), verb.places, words[1:]
        elif len(words) > 1 and (made := _stages().get(".".join(words[:2]))):
            self.owners, self.rest = (made, Running, Line) if place == "line" else (made,), words[2:]
        elif place == "line":
            self.owners, self.rest = (self.verbs["status"], Line), words

    def offers(self, fragment: str) -> Iterator[Offer]:
        """What may stand here."""
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
                    yield from (offer for name in self._free() for offer in self._values(name))
                yield from self._options()

    def values_of_last(self) -> Iterator[Offer]:
        """What the option that the words end with may hold."""
        name = self._spelled().get(self.words[-1])
        if name:
            yield from self._values(name)

    def _first(self) -> Iterator[Offer]:
        from kdkit.contract import FAMILIES

        yield from ((word, "verb") for word in self.verbs)
        yield from ((family, "family") for family in dict.fromkeys(id.partition(".")[0] for id in _stages()) or FAMILIES)
        if self.place == "body":
            yield "together:", "group"

    def _spelled(self) -> dict[str, str]:
        from kdkit.lines import option, refers

        return {option(name): name for owner in self.owners for name in owner.model_fields if refers(owner, name) != "others"}

    def _owner(self, name: str) -> type[Settings]:
        return next(owner for owner in self.owners if name in owner.model_fields)

    def _waiting(self) -> tuple[str, bool]:
        """(the field whose value is being written, whether something else may stand here as well)."""
        from kdkit.lines import kind

        for distance, word in enumerate(reversed(self.rest)):
            name = self._spelled().get(word, "")
            if name and kind(self._owner(name), name).base is not bool:
                return (name, distance > 0) if distance == 0 or kind(self._owner(name), name).many else ("", True)
            if word.startswith("-"):
                break
        return "", True

    def _free(self) -> Sequence[str]:
        """The next field that may be given by position."""
        from kdkit.lines import kind

        taken = len([word for word, before in zip(self.rest, ["", *self.rest], strict=False) if not word.startswith("-") and not before.startswith("-")])
        many = self.places and kind(self._owner(self.places[-1]), self.places[-1]).many
        return self.places[min(taken, len(self.places) - 1) :][:1] if many else self.places[taken : taken + 1]

    def _options(self) -> Iterator[Offer]:
        from kdkit.lines import kind

        for flag, name in self._spelled().items():
            if flag in self.rest:
                continue
            yield flag, "option"
            this = kind(self._owner(name), name)
            if this.base is bool and self._owner(name).model_fields[name].default:
                yield "--no-" + flag[2:], "option"

    def _values(self, name: str) -> Iterator[Offer]:
        from kdkit.lines import kind, refers

        owner = self._owner(name)
        this, what = kind(owner, name), refers(owner, name)
        yield from ((str(choice), "value") for choice in (*this.choices, *owner.offers(name)))
        if this.base is bool:
            yield from (("true", "value"), ("false", "value"))
        yield from self._referred(what, this.base is object)
        default = owner.model_fields[name].default
        if this.base in (int, float) and not this.choices and default is not None and not owner.model_fields[name].is_required():
            yield str(default), "value"

    def _referred(self, what: str, bare: bool) -> Iterator[Offer]:
        from kdkit import notebook

        session = notebook.session(self.shell)
        if session is not None and what in ("version", "model"):
            yield from ((version.name, "version") for version in reversed(session.versions))
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
            from kdkit.plugins import manager

            yield from ((plugin.name, "plugin") for plugin in manager().plugins())
        if what == "technique" and "torch" in sys.modules:
            from kdkit.plugins import manager

            yield from ((id, "technique") for id in manager().stages() if manager().provider(id).name == "notebook")
        if what == "path":
            yield from ((path.name + "/" * path.is_dir(), "path") for path in sorted(Path().iterdir()) if not path.name.startswith("."))

    def _topics(self, what: str) -> Iterator[Offer]:
        if what == "topic" and self.rest:
            yield from ((id.partition(".")[2], "technique") for id in _stages() if id.startswith(f"{self.rest[0]}."))
            return
        if what == "topic":
            yield from ((word, "verb") for word in self.verbs)
        yield from ((family, "family") for family in dict.fromkeys(id.partition(".")[0] for id in _stages()))


def _stages() -> dict[str, Any]:
    if "torch" not in sys.modules:
        return {}
    from kdkit.plugins import manager

    return manager().stages()

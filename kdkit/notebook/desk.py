"""The desk: what a `%kd` line works with (shell, session, the notebook's variables), and how a line is carried out."""

from __future__ import annotations

import builtins
import contextlib
import itertools
from collections import ChainMap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdkit.errors import KdError, did_you_mean
from kdkit.lines import Reference, kind, refers

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.context import Progress
    from kdkit.contract import Settings
    from kdkit.session import Session

OBJECTS = ("model", "data", "function", "object", "others")
"""What a field may refer to that is an object of the notebook."""


@dataclass
class Held:
    """What all desks of a notebook share: the session, and the objects it was given by the names under which it holds them."""

    session: Session | None = None
    handed: dict[str, Any] = field(default_factory=dict)


class Desk:
    """Where the lines of one notebook are worked on.

    Attributes:
        shell: the running IPython.
        variables: what expressions see: the caller's locals over the notebook's variables.
        quiet: no progress is to be shown.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self.shared = Held()
        self.variables: ChainMap[str, Any] = ChainMap(shell.user_ns)
        self.quiet = False
        self._new: dict[str, Any] = {}
        self._last: KdError | None = None

    @property
    def held(self) -> Session | None:
        """The session, once there is one."""
        return self.shared.session

    @property
    def session(self) -> Session:
        """The session.

        Raises:
            KdError: no model was adopted yet.
        """
        if self.held is None:
            raise KdError("there is no model yet", "%kd use your_model --train {loader} --eval {loader}", "%kd load FOLDER opens one that was saved")
        return self.held

    @property
    def has_session(self) -> bool:
        return self.held is not None

    def progress(self) -> contextlib.AbstractContextManager[Callable[[Progress], None] | None]:
        """Shows how far a stage is while the block runs; gives what is to be told."""
        from kdkit.notebook.progress import watch

        return watch(self.shell, self.quiet)

    def put_below(self, lines: str) -> None:
        """Put lines into a new cell below the one that runs."""
        self.shell.set_next_input(lines, replace=False)

    def begin(self, session: Session, given: dict[str, Any]) -> None:
        """Work on another session from now on; `given` are the objects it was made with, by name."""
        self.shared.session, self.shared.handed = session, dict(given)

    def remember(self, given: dict[str, Any]) -> None:
        """Note which objects the session was given under which names."""
        self.shared.handed |= given

    # one line

    def execute(self, line: str, cell: str | None, local: dict[str, Any], quiet: bool = False, debug: bool = False) -> Any:
        """Carry out a `%kd` line or `%%kd` cell and return what it gives; None where it ends with `;`.

        Raises:
            KdError: whatever was wrong; shown without a traceback, unless `--debug` asks for it.
        """
        from kdkit.notebook.grammar import parse

        self.variables = ChainMap(local, self.shell.user_ns)
        debug = debug or "--debug" in line.split()
        if self._last is not None and cell is None and line.split() == ["--debug"]:
            self._show(self._last, whole=True)
            raise self._last
        try:
            command = parse(line, cell, self)
            self.quiet = quiet or command.line.quiet
            result = command.verb.run(self)
        except KdError as error:
            self._last = error
            self._show(error, whole=debug)
            raise
        except KeyboardInterrupt as stop:
            self._show(stop, whole=debug)
            raise
        finally:
            # a function's locals, and what a failed line named, must not live on here
            self.variables, self._new = ChainMap(self.shell.user_ns), {}
        if command.line.o:
            self.shell.push({command.line.o: result})
        return None if command.silent else result

    def _show(self, error: KdError | KeyboardInterrupt, whole: bool) -> None:
        """Have the error shown in short the first time it is asked for and as a whole the next, which is when `%tb` asks."""
        asked = itertools.count(int(whole))

        def render() -> list[str]:
            if next(asked) == 0:
                return type(error)._render_traceback_(error) if isinstance(error, KdError) else self._stopped()
            return self.shell.InteractiveTB.structured_traceback(type(error), error, error.__traceback__)

        error._render_traceback_ = render  # type: ignore[method-assign, union-attr]

    def _stopped(self) -> list[str]:
        where = f"the session is whole and stands on {self.held.head.name}" if self.held else "there is no model yet"
        return [f"\x1b[1mKeyboardInterrupt\x1b[0m: stopped; {where}", "  hint: %kd shows what there is"]

    # objects

    def value(self, source: str) -> Any:
        """What an expression of the line stands for.

        Raises:
            KdError: a name in it is unknown, or it raises.
        """
        try:
            return eval(source, dict(self.variables))
        except NameError as error:
            name = getattr(error, "name", None) or source
            raise KdError(f"{{{source}}}: there is no variable {name!r}", did_you_mean(name, self._names()), f"make it first: {name} = ...") from error
        except Exception as error:
            raise KdError(f"{{{source}}} raised {type(error).__name__}: {error}", "look at the expression between the braces") from error

    def _names(self) -> list[str]:
        return [name for name in self.variables if not name.startswith("_") and name not in vars(builtins)]

    def resolver(self, *owners: type[Settings]) -> Callable[[str, Any], Any]:
        """For `kdkit.lines.read_options`: (field name, word) -> value, for a line that these classes share."""

        def resolve(name: str, word: Any) -> Any:
            owner = next(owner for owner in owners if name in owner.model_fields)
            what, takes_object = refers(owner, name), kind_of(owner, name) is object
            if what == "version":
                return self._version(word)
            if what not in OBJECTS:
                return self.value(word.source) if isinstance(word, Reference) else word
            if takes_object:
                return self._object(word, what)
            return self._named(word, what, name)

        return resolve

    def _version(self, word: Any) -> Any:
        value = self.value(word.source) if isinstance(word, Reference) else word
        return f"@{value.number}" if hasattr(value, "number") else f"@{value}" if isinstance(value, int) else value

    def _object(self, word: Any, what: str) -> Any:
        """The object that a verb is handed."""
        if isinstance(word, Reference):
            return self.value(word.source)
        if word.startswith("@"):
            return self.session.history.model_of(self.session.version(word))
        if word in self.variables and (what != "function" or callable(self.variables[word])):
            return self.variables[word]
        if self.has_session and word in self.session.objects:
            return self.session.objects[word]
        if what == "function":
            return word
        if not word.isidentifier():
            raise KdError(f"{word!r} is not the name of a variable", f"write the name of your {what}, or an expression in braces: {{{word}}}")
        raise KdError(
            f"there is no variable {word!r}", did_you_mean(word, self._names()), f"write the name of your {what}, or an expression in braces: {{nets['{word}']}}"
        )

    def _named(self, word: Any, what: str, option: str) -> Any:
        """The name under which the session holds what a stage is handed; an object it does not hold is given to it."""
        if not isinstance(word, Reference):
            held = word.startswith("@") or word in ("teacher", "original") or not self.has_session or self.session.objects.get(word) is not None
            if held or word not in self.variables:
                return word
            word = Reference(word)
        value = self.value(word.source)
        if isinstance(value, str):
            return value
        if type(value).__name__ == "Version" and hasattr(value, "number"):
            return f"@{value.number}"
        return self._name_for(value, word.source if word.source.isidentifier() else "", option)

    def _name_for(self, value: Any, identifier: str, option: str) -> str:
        objects = set(self.session.objects) if self.has_session else set()
        known = [name for name, held in (self.shared.handed | self._new).items() if held is value and name in objects | self._new.keys()]
        if known:
            return known[0]
        taken = objects | self._new.keys()
        candidates = itertools.chain([identifier] if identifier else [], (f"{identifier or option}_{count}" for count in itertools.count(2 if identifier else 1)))
        name = next(name for name in candidates if name not in taken)
        self._new[name] = value
        return name

    @contextlib.contextmanager
    def handed_over(self) -> Iterator[None]:
        """The session with the objects that this line named; where nothing comes of it, they are taken back."""
        session, history, new = self.session, self.session.history, dict(self._new)
        if new:
            session.set(**new)
        try:
            yield
        finally:
            if new and session.history is history:
                session.objects = session.objects.having(dict.fromkeys(new), session.settings["batch_size"])
            else:
                self.shared.handed |= new


class Aside(Desk):
    """A desk of its own on a notebook's session, for lines that are carried out beside its cells, in a thread.

    Args:
        desk: the notebook's.
        observe: hears how far a stage is, in place of the notebook's display.
    """

    def __init__(self, desk: Desk, observe: Callable[[Progress], None] | None = None) -> None:
        super().__init__(desk.shell)
        self.shared, self.observe = desk.shared, observe

    def progress(self) -> contextlib.AbstractContextManager[Callable[[Progress], None] | None]:
        return contextlib.nullcontext(self.observe)

    def put_below(self, lines: str) -> None:
        """Nothing: no cell runs here, and whichever runs next would have them below it."""


def kind_of(owner: type[Settings], name: str) -> type:
    """The type of a field's values; a dict of objects counts as objects."""
    return object if refers(owner, name) == "others" else kind(owner, name).base

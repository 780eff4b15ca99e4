"""The notebook face: `%kd` and `%%kd`, completion, help, progress.

Loading it imports next to nothing; verbs, pydantic and torch come with the first line that needs them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.notebook.desk import Desk
    from kdkit.notebook.magics import KdMagics
    from kdkit.session import Session

_loaded: dict[Any, KdMagics] = {}
_desks: dict[Any, Desk] = {}


def load(shell: InteractiveShell) -> None:
    """Add `%kd`, `%%kd`, their completion and `%config KdMagics`; once, however often it is called."""
    from kdkit import cells
    from kdkit.notebook.completion import matcher
    from kdkit.notebook.magics import KdMagics

    if shell in _loaded:
        unload(shell)
    magics = _loaded[shell] = KdMagics(shell)
    shell.register_magics(magics)
    magics.matcher = matcher(shell)
    shell.Completer.custom_matchers.append(magics.matcher)
    shell.events.register("pre_run_cell", cells.begin)


def unload(shell: InteractiveShell) -> None:
    """Take out all that `load` put in; the session stays for the next `load`."""
    magics = _loaded.pop(shell, None)
    if magics is None:
        return
    from kdkit import cells

    shell.events.unregister("pre_run_cell", cells.begin)
    if "kdkit.notebook.wizard.opening" in sys.modules:
        sys.modules["kdkit.notebook.wizard.opening"].close(shell)
    for table in shell.magics_manager.magics.values():
        table.pop("kd", None)
    shell.magics_manager.registry.pop(type(magics).__name__, None)
    shell.configurables[:] = [item for item in shell.configurables if item is not magics]
    shell.Completer.custom_matchers[:] = [item for item in shell.Completer.custom_matchers if item is not magics.matcher]


def desk_of(shell: InteractiveShell) -> Desk:
    """What the lines of this shell work with; made at the first of them, and kept when the extension is reloaded."""
    if shell not in _desks:
        from kdkit.notebook.desk import Desk

        _desks[shell] = Desk(shell)
    return _desks[shell]


def session(shell: InteractiveShell) -> Session | None:
    """The session that `%kd` works on in this shell, if there is one yet."""
    return _desks[shell].held if shell in _desks else None

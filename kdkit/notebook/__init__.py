"""The notebook interface: `%kd` and `%%kd`, completion, help, progress.

Loading it imports almost nothing; verbs, pydantic and torch are imported by the first line that needs them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from kdkit.lazy import attach

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kdkit.notebook.magics import KdMagics

_find, __dir__, _exported = attach(__name__, {"workspace": ["workspace_of", "session"]})

__all__ = ["load", "session", "unload", "workspace_of"]

_loaded: dict[Any, KdMagics] = {}


def __getattr__(name: str) -> Any:
    return _find(name)


def load(shell: InteractiveShell) -> None:
    """Add `%kd`, `%%kd`, their completion and `%config KdMagics` to a shell. A second call replaces the first."""
    from kdkit.notebook.completion import matcher
    from kdkit.notebook.magics import KdMagics
    from kdkit.notebook.question_mark import LineHelp
    from kdkit.plugins.cell_runs import on_pre_run_cell

    if shell in _loaded:
        unload(shell)
    magics = _loaded[shell] = KdMagics(shell)
    shell.register_magics(magics)
    magics.matcher = matcher(shell)
    shell.Completer.custom_matchers.append(magics.matcher)
    shell.input_transformer_manager.token_transformers.append(LineHelp)
    shell.events.register("pre_run_cell", on_pre_run_cell)


def unload(shell: InteractiveShell) -> None:
    """Remove everything that `load` added; the session is kept for the next `load`."""
    magics = _loaded.pop(shell, None)
    if magics is None:
        return
    from kdkit.notebook.question_mark import LineHelp
    from kdkit.plugins.cell_runs import on_pre_run_cell

    transformers = shell.input_transformer_manager.token_transformers
    transformers[:] = [each for each in transformers if each is not LineHelp]
    shell.events.unregister("pre_run_cell", on_pre_run_cell)
    if "kdkit.notebook.wizard.launch" in sys.modules:
        sys.modules["kdkit.notebook.wizard.launch"].close(shell)
    for table in shell.magics_manager.magics.values():
        table.pop("kd", None)
    shell.magics_manager.registry.pop(type(magics).__name__, None)
    shell.configurables[:] = [item for item in shell.configurables if item is not magics]
    shell.Completer.custom_matchers[:] = [item for item in shell.Completer.custom_matchers if item is not magics.matcher]

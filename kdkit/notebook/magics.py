"""The magics `%kd` and `%%kd`. This module is thin, so that `%load_ext kdkit` is fast."""

from __future__ import annotations

import os
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from traitlets import Bool, observe


@magics_class
class KdMagics(Magics):
    """Settings of `%kd`: `%config KdMagics.quiet = True`."""

    stable = Bool(False, help="Show values that differ from run to run (times, paths) as '…', so that notebook outputs can be compared.").tag(config=True)
    quiet = Bool(False, help="Show no progress.").tag(config=True)
    debug = Bool(False, help="Show errors with their full traceback.").tag(config=True)
    matcher: Any = None

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def kd(self, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:
        """Make a model smaller and faster: %kd help."""
        from kdkit.notebook.dispatch import execute
        from kdkit.notebook.workspace import workspace_of

        assert self.shell is not None
        return execute(workspace_of(self.shell), line, cell, local_ns or {}, quiet=self.quiet, debug=self.debug)

    @observe("stable")
    def _set_stable(self, change: dict[str, Any]) -> None:
        os.environ["KDKIT_STABLE"] = "1" if change["new"] else "0"


def _reference() -> str:
    import kdkit.notebook.verbs  # noqa: F401 - declares the verbs
    from kdkit.notebook.help_pages import overview

    return f"{overview()!r}\n"


# the docstring of `%kd?` is written when it is asked for, as the verbs are not loaded before
KdMagics.kd.getdoc = _reference  # type: ignore[union-attr]

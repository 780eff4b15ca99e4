"""The magics themselves: thin, so that `%load_ext kdkit` is instant."""

from __future__ import annotations

import os
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from traitlets import Bool, observe


@magics_class
class KdMagics(Magics):
    """Settings of `%kd`: `%config KdMagics.quiet = True`."""

    stable = Bool(False, help="Show figures that differ from run to run (times, paths) as '…', so that notebooks compare.").tag(config=True)
    quiet = Bool(False, help="Show no progress.").tag(config=True)
    debug = Bool(False, help="Show errors with their whole traceback.").tag(config=True)
    matcher: Any = None

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def kd(self, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> Any:
        """Make a model smaller and faster: %kd help."""
        from kdkit.notebook import desk_of

        assert self.shell is not None
        return desk_of(self.shell).execute(line, cell, local_ns or {}, quiet=self.quiet, debug=self.debug)

    @observe("stable")
    def _set_stable(self, change: dict[str, Any]) -> None:
        os.environ["KDKIT_STABLE"] = "1" if change["new"] else "0"


def _reference() -> str:
    from kdkit.notebook.help import overview

    return f"{overview()!r}\n"


# what `%kd?` asks for; written from the verbs' declarations when it is asked, since they are not loaded before
KdMagics.kd.getdoc = _reference  # type: ignore[union-attr]

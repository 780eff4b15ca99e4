"""Progress bars of scripts and terminals: tqdm, where nobody else observes a run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

from kdkit.errors import printable
from kdkit.stages.channel import Progress


@contextlib.contextmanager
def observed(observe: Callable[[Progress], None] | None, verbose: bool | None) -> Iterator[Callable[[Progress], None]]:
    """A block whose progress is observed by the caller's callback, or else by bars on stderr (in a notebook: below the cell), one a stage.

    Args:
        observe: the caller's.
        verbose: whether to show bars; None: on terminals and in notebooks, and not where stderr is a file or KDKIT_STABLE is 1.

    Yields:
        The callback for progress.
    """
    shown = sys.stderr is not None and (_seen_by_someone() if verbose is None else verbose)
    if observe is not None or not shown:
        yield observe or (lambda progress: None)
        return
    bars = _Bars()
    try:
        yield bars.observe
    finally:
        bars.close()


def _seen_by_someone() -> bool:
    if os.environ.get("KDKIT_STABLE") == "1":
        return False
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    try:
        return hasattr(shell, "kernel") or sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


class _Bars:
    """The bar of the current stage; those of the stages before it stay as they ended."""

    def __init__(self) -> None:
        self._stage: tuple[str, int] | None = None
        self._bar: Any = None

    def observe(self, progress: Progress) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that went away does not end the run
            if (progress.stage, progress.part) != self._stage:
                self._begin(progress)
            self._show(progress)

    def close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.close()
        self._bar = self._stage = None

    def _begin(self, progress: Progress) -> None:
        self.close()
        self._bar, self._stage = tqdm(total=progress.total, file=sys.stderr, dynamic_ncols=True), (progress.stage, progress.part)

    def _show(self, progress: Progress) -> None:
        place = f" ({progress.part} of {progress.parts})" if progress.parts > 1 else ""
        text = printable(f"{progress.stage}{place}{f', {progress.text}' if progress.text else ''}")
        changed = self._bar.desc != f"{text}: " or self._bar.total != progress.total
        self._bar.total = progress.total
        self._bar.set_description(text, refresh=False)
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in progress.figures.items()}, refresh=False)
        self._bar.update(progress.done - self._bar.n)
        if changed:
            self._bar.refresh()

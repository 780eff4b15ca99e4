"""Interrupts: the user's Ctrl-C, as distinct from a KeyboardInterrupt that the code of a plugin raises itself."""

from __future__ import annotations

import dis
from collections.abc import Iterator


def package_of(module: str) -> str:
    """The package that code belongs to; within kdkit the module itself, as its rooms hold several plugins.

    >>> package_of("kdkit_prune.channels"), package_of("kdkit.plugins.builtin")
    ('kdkit_prune', 'kdkit.plugins.builtin')
    """
    package = module.partition(".")[0]
    return module if package == "kdkit" else package


def raise_interrupt(error: BaseException, home: str, handled: BaseException | None = None) -> None:
    """Raise KeyboardInterrupt if the user interrupted, also where a library turned the interrupt into an error of its own.

    Args:
        error: that a plugin's call raised.
        home: the plugin's package. A KeyboardInterrupt that a `raise` statement in it raised is not the user's.
        handled: the error that was being handled before the call, which `error` may have as its context.

    Raises:
        KeyboardInterrupt: the user interrupted the call.

    >>> raise_interrupt(ValueError("no interrupt"), "kdkit_mine")
    >>> try:
    ...     raise_interrupt(KeyboardInterrupt(), "kdkit_mine")
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    interrupted
    """
    for each in _with_causes(error, handled):
        if isinstance(each, KeyboardInterrupt) and not _is_raised_in(each, home):
            if each is error:
                raise error
            raise KeyboardInterrupt from error


def _with_causes(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each is not handled and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def _is_raised_in(error: BaseException, home: str) -> bool:
    """Whether a `raise` statement in a package raised an error; an interrupt comes between two instructions, or from a signal handler elsewhere."""
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return False
    frame = innermost.tb_frame
    return package_of(str(frame.f_globals.get("__name__"))) == home and dis.opname[frame.f_code.co_code[innermost.tb_lasti]] == "RAISE_VARARGS"

"""Error words: an exception in one line, without the words of libraries."""

from __future__ import annotations

from kdkit.errors import KdError, describe_exception
from kdkit.guards.error_location import find_error_line
from kdkit.guards.error_meanings import innermost, is_library, is_raised_outside_libraries, known_meaning

_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (IndexError, "a part is selected that does not exist"),
    (KeyError, "a part is looked up that does not exist"),
    (NotImplementedError, "an operation does not exist for these tensors"),
    (MemoryError, "there is too little memory"),
    (AssertionError, "a condition of a layer is not met"),
    (TypeError, "a value has a type that an operation can't use"),
    (AttributeError, "a value lacks an attribute that is used"),
    (BaseException, "an operation does not accept its inputs"),
)

_COMPILED = (RuntimeError, IndexError, ValueError, TypeError, AttributeError, MemoryError)
"""What compiled code of the libraries raises in the line that calls it."""


def explain_error(error: BaseException, module: str = "") -> str:
    """What an error means, in one line; a library's own words are replaced, those of the user's code are kept.

    Args:
        module: the module of the model's class; the line of its package that raised is added.

    >>> explain_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x4 and 3x1)"))
    'a linear layer expects 3 features and receives 4'
    >>> explain_error(ValueError("the image has no face"))
    'ValueError: the image has no face'
    """
    if isinstance(error, KdError):
        return error.message
    line = find_error_line(error, "__main__" if is_library(module) else module) if module else None
    place = f" ({line}: {line.code})" if line and line.code else ""
    return (known_meaning(error) or _own_words(error) or next(words for kind, words in _KINDS if isinstance(error, kind))) + place


def _own_words(error: BaseException) -> str:
    """The message of an error that the user's own code raised; empty for one of a library."""
    if (end := innermost(error)) is not None and not _is_own(error, str(end.tb_frame.f_globals.get("__name__", ""))):
        return ""
    return describe_exception(error).splitlines()[0]


def _is_own(error: BaseException, module: str) -> bool:
    """Whether a `raise` outside of the libraries raised an error, or the error is of a kind that their compiled code never raises."""
    return is_raised_outside_libraries(error) or not (is_library(module) or isinstance(error, _COMPILED))

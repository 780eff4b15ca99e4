"""Parameters that map names to values: `dict[str, X]`, written as `name=value` words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn


class FrozenDict(dict[str, Any]):
    """A dict that can't be changed; two are equal when they hold the same items in the same order.

    >>> bits = FrozenDict({"encoder.*": 4, "head": 8})
    >>> bits == {"head": 8, "encoder.*": 4}, bits == FrozenDict({"head": 8, "encoder.*": 4})
    (True, False)
    """

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a stage's parameters can't be changed; make another stage: stage.model_copy(update={...})")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        return list(self.items()) == list(other.items()) if isinstance(other, FrozenDict) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple[type, tuple[dict]]:
        return FrozenDict, (dict(self),)


def differ(one: Any, other: Any) -> bool:
    """Whether two values of a parameter differ; the order of a mapping's items counts, as a later pattern may win over an earlier one.

    >>> differ({"a": 1, "b": 2}, {"b": 2, "a": 1}), differ(0.5, 0.5)
    (True, False)
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one.items()) != list(other.items())
    return bool(one != other)


_SEPARATOR = re.compile(r"(\\*)=")
_BEFORE_EQUALS = re.compile(r"(\\*)(=|\Z)")


def write_entry(name: str, value: str) -> str:
    r"""One item of a mapping as a word. A `=` within the name is written `\=`; backslashes count only in front of a `=`, where they are doubled.

    >>> print(write_entry("head", "8"), write_entry("a=b", "c=d"), write_entry(r"layer\.\d", "4"))
    head=8 a\=b=c=d layer\.\d=4
    """
    return _BEFORE_EQUALS.sub(lambda found: found[1] * 2 + (r"\=" if found[2] else ""), name) + "=" + value


def read_entry(word: str) -> tuple[str, str | None]:
    r"""(name, value) of a `name=value` word; the value is None where there is no `=`.

    >>> read_entry("encoder.*=4"), read_entry(r"a\=b=c=d"), read_entry("head")
    (('encoder.*', '4'), ('a=b', 'c=d'), ('head', None))
    """
    name, at = "", 0
    for found in _SEPARATOR.finditer(word):
        slashes = found[1]
        name += word[at : found.start()] + slashes[: len(slashes) // 2]
        at = found.end()
        if len(slashes) % 2 == 0:
            return name, word[at:]
        name += "="
    return name + word[at:], None

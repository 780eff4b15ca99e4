"""Reading YAML of a stranger: its size, depth, aliases, tags and numbers are bounded before anything is made of it."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from kdkit.errors import KdError, printable

LARGEST_BYTES = 200_000
"""Of a file; a recipe of a hundred steps has about 20 000."""
DEEPEST = 12
"""Levels of lists and mappings; a recipe has seven."""
LONGEST_NUMBER = 64
"""Characters of a number."""


def read_yaml(path: Path) -> Any:
    """The plain data of a YAML file: no aliases, no tags, no key twice.

    Raises:
        KdError: the file can't be read, is too large, or is not such YAML.
    """
    import yaml

    shown = printable(str(path))
    text = _read_text(path, shown)
    try:
        _check_events(text, shown)
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is an impossible date or number
        raise KdError(f"{shown} is not YAML{_place_of(error)}", "a recipe is a YAML file that session.recipe().save(path) wrote") from error


def _read_text(path: Path, shown: str) -> str:
    hint = "a recipe is a YAML file that session.recipe().save(path) wrote"
    try:
        if path.exists() and not path.is_file():
            raise KdError(f"{shown} is not a file", hint)
        with path.open("rb") as file:
            held = file.read(LARGEST_BYTES + 1)
        if len(held) > LARGEST_BYTES:
            raise KdError(f"{shown} is larger than {LARGEST_BYTES:,} bytes, so it is no recipe", hint)
        return held.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or ("it is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else "no file has such a name")
        raise KdError(f"can't read {shown}: {reason}", hint) from error


def _place_of(error: Exception) -> str:
    """Where a YAML error is, and what it is where kdkit itself found it."""
    mark, found = getattr(error, "problem_mark", None), str(getattr(error, "problem", None) or "")
    return (f", line {mark.line + 1}" if mark else "") + (f": {printable(found)}" if "occurs twice" in found else "")


def _check_events(text: str, shown: str) -> None:
    """Refuse what would take memory, time or the stack, before anything is built."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        mark = event.start_mark
        where = f"{shown}, line {mark.line + 1}" if mark else shown
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise KdError(f"{where}: a recipe holds no anchors and aliases (&name, *name)", "write the value out where it is used; quote a text that begins with & or *")
        if getattr(event, "tag", None):
            raise KdError(f"{where}: a recipe holds no tags (!name)", "write plain values; quote a text that begins with !")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise KdError(f"{where}: lists and mappings are nested more than {DEEPEST} deep", "a recipe has a list of steps, and together: groups hold stages only")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > LONGEST_NUMBER and event.value[0] in "+-.0123456789":
            raise KdError(f"{where}: a number has more than {LONGEST_NUMBER} characters", "quote it if it is text")


@cache
def _loader() -> Any:
    """The safe loader, that of libyaml where it is installed, in which a key that occurs twice is an error."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if repeated := next((key for key, count in keys.items() if count > 1), None):
                raise yaml.constructor.ConstructorError(problem=f"the key {repeated[:40]!r} occurs twice, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    return Loader


def write_yaml(data: Any) -> str:
    """Plain data as YAML, with its keys in their order.

    >>> print(write_yaml({"steps": ["prune channels"], "name": "small"}), end="")
    steps:
    - prune channels
    name: small
    """
    import yaml

    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)

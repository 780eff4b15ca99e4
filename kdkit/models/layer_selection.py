"""Select layers by name patterns, for options such as `--layers` and `--skip`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from kdkit.errors import KdError, did_you_mean

if TYPE_CHECKING:
    from torch import nn


def select_layers(model: nn.Module, patterns: Iterable[str], kinds: type | tuple[type, ...] | None = None) -> dict[str, nn.Module]:
    """The modules that match the patterns, by their full names, in the model's order.

    A pattern that matches a module selects that module and all modules inside it. A pattern matches
    - with a wildcard (`*`, `?`, `[...]`): as `fnmatch` on the full name; `*` also matches dots;
    - without a wildcard: the module of exactly that name. If there is no such module: every module whose name contains the pattern as
      complete segments. `q_proj` matches `layers.0.q_proj`, and `layer.1` matches `encoder.layer.1` but not `encoder.layer.11`.

    A shared module matches under each of its names and is returned once, under the first.

    Args:
        model: the model to search.
        patterns: no patterns select no modules.
        kinds: return only modules of these classes.

    Raises:
        KdError: a pattern selects no module of these classes; the message suggests similar names.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    >>> list(select_layers(net, ["1"], nn.Linear))
    ['1.0']
    >>> list(select_layers(net, ["*"], nn.Linear))
    ['0', '1.0']
    """
    places = dict(model.named_modules(remove_duplicate=False))
    first = {module: name for name, module in reversed(places.items())}
    wanted: set[str] = set()
    for pattern in patterns:
        exact = pattern in places
        hits = {first[module] for name, module in places.items() if _means(pattern, name, exact)}
        kept = {name for name in hits if kinds is None or isinstance(places[name], kinds)}
        if not kept:
            raise _nothing(pattern, hits, places, kinds)
        wanted |= kept
    return {name: module for name, module in model.named_modules() if name in wanted}


def _means(pattern: str, name: str, exact: bool) -> bool:
    if any(sign in pattern for sign in "*?["):
        return any(fnmatchcase(part, pattern) for part in _lineage(name))
    if exact:
        return name == pattern or name.startswith(pattern + ".")
    return f".{pattern}." in f".{name}."


def _lineage(name: str) -> Iterator[str]:
    """The name, then the names of the modules around it: a.b.c, a.b, a."""
    while True:
        yield name
        if "." not in name:
            return
        name = name.rpartition(".")[0]


def _nothing(pattern: str, hits: set[str], places: dict[str, nn.Module], kinds: type | tuple[type, ...] | None) -> KdError:
    sought = [name for name, module in places.items() if kinds is None or isinstance(module, kinds)]
    words = {name: None for name in sought if name} | {part: None for name in sought for part in name.split(".") if part and not part.isdigit()}
    kind = "module" if kinds is None else " or ".join(each.__name__ for each in (kinds if isinstance(kinds, tuple) else (kinds,)))
    if hits:
        found = sorted({type(module).__name__ for name, module in places.items() if name in hits})
        message = f"pattern {pattern!r} fits no {kind}, only {', '.join(found)}"
    else:
        message = f"pattern {pattern!r} fits no {kind} of the model"
    named = [name or "the model itself" for name in sought]
    some = ", ".join(named[:8]) + (f", ... ({len(sought)} in all)" if len(sought) > 8 else "")
    return KdError(message, did_you_mean(pattern, words), f"there are: {some}" if some else f"the model has no {kind} at all")

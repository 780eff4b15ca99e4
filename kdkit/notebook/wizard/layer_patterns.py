"""Layer patterns: the shortest patterns that select certain layers of a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def shortest_patterns(layers: Sequence[str], chosen: Collection[str]) -> tuple[str, ...]:
    """Names of modules that select the chosen ones of some layers and no others: a module that holds only chosen layers stands for them.

    Args:
        layers: full names of all layers.
        chosen: of those to select.

    >>> shortest_patterns(["stem", "body.0", "body.1", "head"], {"body.0", "body.1", "head"})
    ('body', 'head')
    >>> shortest_patterns(["body.0", "body.1"], {"body.1"})
    ('body.1',)
    """
    return tuple(_patterns(layers, set(chosen), ""))


def _patterns(layers: Sequence[str], chosen: set[str], parent: str) -> list[str]:
    """The patterns of the layers inside a module; "" is the model, which no pattern names."""
    inside = f"{parent}." if parent else ""
    children = dict.fromkeys(inside + name.removeprefix(inside).partition(".")[0] for name in layers)
    found: list[str] = []
    for child in children:
        held = [name for name in layers if name == child or name.startswith(f"{child}.")]
        if all(name in chosen for name in held):
            found.append(child)
        elif any(name in chosen for name in held):
            found += _patterns([name for name in held if name != child], chosen, child)
    return found

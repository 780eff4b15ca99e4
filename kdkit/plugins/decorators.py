"""The decorators that register a stage or a hook from a notebook cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdkit.errors import KdError
from kdkit.plugins import hookspecs
from kdkit.plugins.discovery import GROUP, published
from kdkit.plugins.manager import manager
from kdkit.stages.function_stage import _check_facts, _completed, _of_function
from kdkit.stages.stage import Stage


def stage(id: str, **facts: Any) -> Callable[[Callable], type[Stage]]:
    """Make a stage from a function, or complete a subclass of `Stage`, and offer it in this session.

    Running the cell again replaces the stage. In the module of an installed plugin the decorator offers nothing; there the
    hook `kdkit_stages` returns the stages.

    Args:
        id: "family.technique".
        facts: class attributes of the stage: needs, requires, forbids, adds, removes, ...

    A function takes model, context and its parameters, each with an annotation and a default, plain or made by `param`.

    Raises:
        KdError: the function has another form, or the stage is invalid.

    >>> from kdkit import Trait, param
    >>> @stage("prune.smallest")
    ... def smallest(model, context, *, share: float = param(0.1, "share of weights to zero", ge=0, lt=1)):
    ...     "Zero the smallest weights."
    >>> smallest(share=0.2).line()
    'prune smallest --share 0.2'

    >>> @stage("tune.halve", requires={Trait.FLOAT_WEIGHTS})
    ... class Halve(Stage):
    ...     "Multiply every weight by a factor."
    ...     factor: float = param(0.5, "factor for every weight", gt=0)
    ...     def apply(self, model, context): ...
    >>> Halve(factor=0.25).line()
    'tune halve --factor 0.25'
    """
    if not isinstance(id, str):
        raise KdError("@kdkit.stage needs the id of the stage", f'write @kdkit.stage("prune.{getattr(id, "__name__", "mine").lower()}")')
    _check_facts(id, facts)

    def register(written: Callable) -> type[Stage]:
        stage = _completed(written, id, facts) if isinstance(written, type) else _of_function(written, id, facts)
        if not published(stage.__module__):
            manager().offer(stage)
        return stage

    return register


def offer(function: Callable) -> Callable:
    """Implement a hook from a cell, with a function of the hook's name; running the cell again replaces it.

    In the module of an installed plugin it does the same as `kdkit.hookimpl`.

    Raises:
        KdError: kdkit has no hook of that name.

    >>> @offer
    ... def kdkit_error_hints(error):
    ...     return ["try a smaller --batch-size"] if "out of memory" in str(error) else []
    """
    if not hasattr(function, f"{GROUP}_impl"):
        hookspecs.hookimpl(function)
    if not published(function.__module__):
        manager().register_hook(function)
    return function

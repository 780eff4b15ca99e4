'''Conformance for authors: does a stage do what it declares, and leave alone what is not its own?

In a test of a plugin, three lines; pytest shows each check as a test of its own, `test_conformance[prune mine-untouched]`:

    from kdkit.testing import conformance
    from kdkit_mine import Mine
    test_conformance = conformance(Mine)

In a notebook, `%kd plugins check NAME`; in Python:

>>> from typing import ClassVar
>>> import kdkit
>>> from kdkit.testing import check_stage
>>> class Halve(kdkit.Stage):
...     """Halve every weight."""
...     id: ClassVar = "tune.halve"
...     def apply(self, model, context):
...         for weight in model.parameters():
...             weight.data.mul_(0.5)
>>> check_stage(Halve, models=["mlp", "cnn"])
tune halve: 16 of 16 checks hold; ran on mlp, cnn

A stage runs on every model of the zoo (`kdkit.testing.zoo`) that it does not refuse: an MLP, a CNN with skips and BatchNorm, a depthwise
CNN, an LSTM, and tiny BERT, Llama and GPT-2. Refusing is no failure: a `KdError` that says why is what a stage owes to a model it does
not fit. But it must run on one.

`kdkit.testing.checks` lists the checks; each says what it holds and how to mend what breaks it.
'''

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kdkit.testing.report import Conformance, Conformances, Finding

if TYPE_CHECKING:
    from kdkit.contract import Stage

__all__ = ["Conformance", "Conformances", "Finding", "check_plugin", "check_stage", "conformance"]


def check_stage(stage: type[Stage] | Stage | str, *, models: Iterable[str] | None = None) -> Conformance:
    """Put a stage through all checks.

    Args:
        stage: its class, which is tried with its defaults; or an instance, or a line such as "prune mine --ratio 0.3", to say how.
        models: names of models of the zoo; all of them when not said.

    Returns:
        The report, which `require` turns into an error where something is wrong.

    Raises:
        KdError: there is no such model, or no such stage.
    """
    raise NotImplementedError


def check_plugin(name: str, *, models: Iterable[str] | None = None) -> Conformances:
    """Put every stage of a plugin through all checks.

    Args:
        name: of the plugin, or of its distribution.
        models: as for `check_stage`.

    Raises:
        KdError: there is no such plugin, or it is not loaded.
    """
    raise NotImplementedError


def conformance(*stages: type[Stage] | Stage | str, models: Iterable[str] | None = None) -> Callable[..., Any]:
    """A test for pytest, one case a stage and check.

    >>> test_conformance = conformance("decompose svd --ratio 0.4", models=["mlp"])
    """
    raise NotImplementedError

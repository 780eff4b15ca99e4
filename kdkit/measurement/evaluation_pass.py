"""An evaluation pass: a version runs through the evaluation data once, and what several measures need is gathered on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import Cancelled, KdError
from kdkit.measurement.jackknife import Sums
from kdkit.tasks.task import masked

if TYPE_CHECKING:
    from kdkit.tasks import Call, Task


class EvaluationPass:
    """One pass through data.

    Args:
        task: compares outputs.
        answering: opens the version.
        original: opens the model that its outputs are compared with; None: they are not compared.
        check_cancelled: called before each batch.
        is_sample: the data are a sample, so that figures need a margin.

    Attributes:
        answer: within `opened`, the version as a function without side effects on what is gathered.
        items: how many items were passed.
        same: how far each answer agrees with the original's, a tensor for each batch.
        failure: why answers could not be compared.
        sums: of a sample, the sums of each batch's scores, and how many counted.
        is_complete: whether the pass went through all data.
    """

    answer: Call
    items: int
    same: list[Tensor]
    failure: Exception | None
    sums: list[Sums]
    is_complete: bool

    def __init__(
        self,
        task: Task | None,
        answering: Callable[[], AbstractContextManager[Call]],
        original: Callable[[], AbstractContextManager[Call]] | None,
        check_cancelled: Callable[[], None],
        is_sample: bool = False,
    ) -> None:
        self._is_sample = is_sample
        self._task, self._answering, self._original, self._check_cancelled = task, answering, original, check_cancelled
        self.begin()

    def begin(self) -> None:
        """Forget what was gathered."""
        self.items, self.same, self.failure, self.sums, self.is_complete = 0, [], None, [], False

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """A block in which the pass takes place."""
        with contextlib.ExitStack() as stack:
            self.answer = stack.enter_context(self._answering())
            self._ask_original = None if self._original is None else stack.enter_context(self._original())
            yield

    def __call__(self, batch: Batch) -> Any:
        """The version's output for a batch."""
        self._check_cancelled()
        output = self.answer(batch)
        self.items += batch.size
        if self._is_sample and self._task is not None:
            with contextlib.suppress(KdError, NotImplementedError):  # without labels there is no quality either
                self.sums.append(batch_sums(self._task, output, batch))
        if self._ask_original is not None and self._task is not None and self.failure is None:
            try:
                self.same.append(self._task.agreeing(output, self._ask_original(batch), batch).detach())
            except Cancelled:
                raise
            except Exception as error:  # the quality is measured all the same
                self.failure = error
        return output


def batch_sums(task: Task, output: Any, batch: Batch) -> Sums:
    """The float64 sums of a batch's scores, and how many of its items or tokens count."""
    counted = task.labelled(batch)
    return {name: masked(values, counted).double().sum(0).cpu() for name, values in task.scores(output, batch).items()}, task.count(batch)

"""An evaluation pass: a version runs through the evaluation data once, and what several measures need is gathered on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdkit.data import Batch
from kdkit.errors import Cancelled

if TYPE_CHECKING:
    from kdkit.tasks import Call, Task


class EvaluationPass:
    """One pass through data.

    Args:
        task: compares outputs.
        answering: opens the version.
        original: opens the model that its outputs are compared with; None: they are not compared.
        check_cancelled: called before each batch.

    Attributes:
        answer: within `opened`, the version as a function without side effects on what is gathered.
        items: how many items were passed.
        same: how far each answer agrees with the original's, a tensor for each batch.
        failure: why answers could not be compared.
        is_complete: whether the pass went through all data.
    """

    answer: Call
    items: int
    same: list[Tensor]
    failure: Exception | None
    is_complete: bool

    def __init__(
        self,
        task: Task | None,
        answering: Callable[[], AbstractContextManager[Call]],
        original: Callable[[], AbstractContextManager[Call]] | None,
        check_cancelled: Callable[[], None],
    ) -> None:
        self._task, self._answering, self._original, self._check_cancelled = task, answering, original, check_cancelled
        self.begin()

    def begin(self) -> None:
        """Forget what was gathered."""
        self.items, self.same, self.failure, self.is_complete = 0, [], None, False

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
        if self._ask_original is not None and self._task is not None and self.failure is None:
            try:
                self.same.append(self._task.agreeing(output, self._ask_original(batch), batch).detach())
            except Cancelled:
                raise
            except Exception as error:  # the quality is measured all the same
                self.failure = error
        return output

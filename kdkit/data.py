"""Data: whatever holds batches in a notebook, adopted as one re-iterable thing with known labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kdkit.errors import KdError

LABEL_KEYS = ("labels", "label", "label_ids", "target", "targets", "y")
"""Keys under which dict batches carry their labels."""


@dataclass(frozen=True)
class Batch:
    """One batch, as a model is called with it.

    Attributes:
        args: positional inputs, tensors of shape (batch, ...).
        kwargs: inputs by name, as HF models take them.
        labels: (batch, ...) or None.

    >>> Batch((torch.zeros(4, 3),), labels=torch.zeros(4)).size
    4
    """

    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Any = None

    @property
    def size(self) -> int:
        """Items in the batch."""
        return len(next(item for item in (*self.args, *self.kwargs.values()) if isinstance(item, torch.Tensor)))

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def __getitem__(self, items: slice) -> Batch:
        """Some of its items."""
        return self._map(lambda tensor: tensor[items])

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        def each(item: Any) -> Any:
            return change(item) if isinstance(item, torch.Tensor) else item

        return Batch(tuple(map(each, self.args)), {key: each(item) for key, item in self.kwargs.items()}, each(self.labels))

    def call(self, model: Callable) -> Any:
        """What `model` gives for it."""
        return model(*self.args, **self.kwargs)

"""Fold: masked weights become ordinary ones, zeros included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from torch import nn

from kdkit import Context, KdError, Stage, Trait
from kdkit.models import Storage
from kdkit_prune.masks import fold_masks


class Fold(Stage):
    """Make pruning masks permanent: every masked weight becomes an ordinary parameter with zeros.

    The outputs stay the same. Afterwards a training stage may change the zeros. The version is stored sparse. Works for the masks
    of `prune weights` and `prune gradual`, of torch.nn.utils.prune and of torch.ao.pruning.
    """

    id: ClassVar[str] = "prune.fold"
    known_as: ClassVar[tuple[str, ...]] = ("make masks permanent",)
    requires: ClassVar[Iterable[str]] = {Trait.MASKS_PENDING}
    removes: ClassVar[Iterable[str]] = {Trait.MASKS_PENDING}
    bridge: ClassVar[bool] = True
    keeps_values: ClassVar[bool] = True

    def storage(self) -> Storage:
        """The zeros are left out of saved folders."""
        return Storage("sparse")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        count = fold_masks(model)
        if not count:
            raise KdError("prune fold: the model has no masks", "%kd prune weights makes some")
        context.note(f"folded the masks of {count} {'weights' if count > 1 else 'weight'} in")
        return model

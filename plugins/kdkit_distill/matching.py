"""Matching: which layers of student and teacher are compared, and how their outputs are had without changing either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdError, did_you_mean
from kdkit.models import evaluating
from kdkit_distill.signals import Pair


class Capture:
    """Keeps what layers give in a forward pass, by hooks; a context manager that takes the hooks off again.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with Capture(net, ["0"]) as capture:
    ...     _ = net(torch.zeros(4, 2))
    ...     capture.take()["0"].shape
    torch.Size([4, 3])
    """

    def __init__(self, model: nn.Module | None = None, layers: Iterable[str] = ()):
        self.model, self.layers = model, tuple(dict.fromkeys(layers))
        self._taken: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        places = dict(self.model.named_modules()) if self.model is not None else {}
        for name in self.layers:
            if name not in places:
                self.__exit__()
                raise KdError(f"{type(self.model).__name__} has no layer {name!r}", did_you_mean(name, places))
            self._hooks.append(places[name].register_forward_hook(self._keeper(name)))
        return self

    def __exit__(self, *error: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._taken = {}

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            self._taken[name] = feature_of(output, name)

        return keep

    def take(self) -> dict[str, Tensor]:
        """What the last forward pass gave, by layer; it is handed out once.

        Raises:
            KdError: a layer did not run.
        """
        taken, self._taken = self._taken, {}
        idle = [name for name in self.layers if name not in taken]
        if idle:
            raise KdError(f"layer {idle[0]!r} of {type(self.model).__name__} did not run in its forward pass", "choose a layer that every batch goes through")
        return taken


def feature_of(output: Any, name: str) -> Tensor:
    """The tensor among a layer's outputs: itself, or the first of a tuple or mapping.

    Raises:
        KdError: there is none.
    """
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else [output]
    found = next((part for part in parts if isinstance(part, Tensor)), None)
    if found is None:
        raise KdError(f"layer {name!r} gives no tensor, but {type(output).__name__}", "choose another layer")
    return found


def probed(model: nn.Module, layers: Iterable[str], batch: Batch) -> tuple[dict[str, Tensor], Any]:
    """What layers and the model give for one batch, in eval mode and without a graph: batch norm and modes stay as they are."""
    with evaluating(model), Capture(model, layers) as capture:
        output = batch.call(model)
        return capture.take(), output


def parsed(pairs: Iterable[str]) -> tuple[Pair, ...]:
    """Pairs as they are written: "student_layer=teacher_layer", or one name for both.

    >>> [str(pair) for pair in parsed(["layer1", "layer2=layer4"])]
    ['layer1=layer1', 'layer2=layer4']
    """
    return tuple(Pair(one, other or one) for one, _, other in (pair.partition("=") for pair in pairs))


def suggested(student: nn.Module, teacher: nn.Module | None, example: Batch, match: str, count: int | None) -> tuple[Pair, ...]:
    """Pairs of layers worth comparing, in order of depth.

    Args:
        teacher: None where only its signals are at hand.
        example: one batch, to see what layers give.
        match: "uniform" spreads the pairs over both nets; "last" takes the deepest.
        count: how many; as many as the student has to offer when not said.

    Raises:
        KdError: nothing can be suggested; the message says how to name layers.
    """
    raise KdError("no layers are named", "--layers student_layer=teacher_layer")

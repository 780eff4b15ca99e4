"""Matching: which layers of student and teacher are compared, and how to capture their outputs without changing the models."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from kdkit import Batch, KdError, did_you_mean
from kdkit.guards import random_state_kept
from kdkit.models import evaluating
from kdkit_distill.layers.stage_detection import Layer, answered, first_tensor, penultimate, stages
from kdkit_distill.signals import Pair

__all__ = ["Capture", "feature_of", "parsed", "penultimate", "probed", "suggested"]


class Capture:
    """Captures the outputs of layers in a forward pass with hooks; a context manager that removes the hooks at its end.

    If a layer runs several times in a pass, its last output is kept. An output that a later operation overwrites in place,
    such as ReLU(inplace=True), is kept as the layer returned it: the first pass copies every output, and finds which need a copy.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with Capture(net, ["0"]) as capture:
    ...     _ = net(torch.zeros(4, 2))
    ...     capture.take()["0"].shape
    torch.Size([4, 3])
    """

    def __init__(self, model: nn.Module | None = None, layers: Iterable[str] = ()):
        self.model, self.layers = model, tuple(dict.fromkeys(layers))
        self._taken: dict[str, tuple[Tensor, Tensor, int]] = {}
        self._calls: Counter[str] = Counter()
        self._safe: dict[str, bool] = {}
        self._places: dict[str | None, nn.Module] = {}

    def __enter__(self) -> Self:
        places = dict(self.model.named_modules()) if self.model is not None else {}
        missing = next((name for name in self.layers if name not in places), None)
        if missing is not None:
            raise KdError(f"{type(self.model).__name__} has no layer {missing!r}", did_you_mean(missing, places) or _some(places))
        self._places = {None: self.model} if self.model is not None else {}
        self._places |= {name: places[name] for name in self.layers}
        try:
            if self.model is not None and self.layers:
                self.model.register_forward_pre_hook(_Hook(weakref.ref(self), None))
            for name in self.layers:
                places[name].register_forward_hook(_Hook(weakref.ref(self), name))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._unhook()
        except KeyboardInterrupt:
            self._unhook()
            raise

    def __del__(self) -> None:
        # an interrupt may come before the `with` block that would remove the hooks
        self._unhook()

    def _unhook(self) -> None:
        """Remove the hooks by their owner, not by their handles: an interrupt may come before a handle is stored."""
        self._taken = {}
        for module in self.model.modules() if self.model is not None else ():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for number in [number for number, hook in hooks.items() if isinstance(hook, _Hook) and hook.owner() in (self, None)]:
                    del hooks[number]

    def _begin(self) -> None:
        """At the start of a pass, discard what an earlier pass left or recomputed in its backward pass."""
        self._taken, self._calls = {}, Counter()

    def _keep(self, name: str, output: Any) -> None:
        tensor = feature_of(output, name)
        self._calls[name] += 1
        self._taken[name] = (tensor if self._safe.get(name) else tensor.clone(), tensor, 0 if tensor.is_inference() else tensor._version)

    def take(self, complete: bool = True) -> dict[str, Tensor]:
        """The outputs of the last forward pass, by layer; they are returned once.

        Args:
            complete: whether every layer must have run; a model with layer drop skips some of its layers in training.

        Raises:
            KdError: a layer did not run, or its output was overwritten in this pass but not in the first.
        """
        taken, self._taken = self._taken, {}
        idle = next((name for name in self.layers if name not in taken), None)
        if idle is not None and complete:
            raise KdError(
                f"layer {idle!r} of {type(self.model).__name__} did not run in its forward pass",
                "choose a layer that is called in every forward pass; a layer whose weights are used without a call has no output to capture",
            )
        found = {}
        for name, (kept, given, version) in taken.items():
            whole = not given.is_inference() and given._version == version
            if self._safe.get(name) and not whole:
                raise KdError(f"the output of layer {name!r} of {type(self.model).__name__} is overwritten in place in some passes only", "choose the layer after it")
            self._safe.setdefault(name, whole)
            # the original where no copy was needed, so that gradients add up in the same order in the first pass of a resumed training
            found[name] = given if whole else kept
        return found

    @property
    def repeated(self) -> dict[str, int]:
        """Layers that ran more than once in the last pass, with their number of calls."""
        return {name: calls for name, calls in self._calls.items() if calls > 1}


@dataclass(frozen=True, eq=False)
class _Hook:
    """A hook with a weak reference to its owner: after a layer, or, without a name, before a forward pass."""

    owner: weakref.ref[Capture]
    name: str | None

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> None:
        capture = self.owner()
        if capture is None or capture._places[self.name] is not module:
            return  # the owner is gone; or this is a copy of the model, made with its hooks
        if self.name is None:
            capture._begin()
        else:
            capture._keep(self.name, output)


def _some(places: Iterable[str]) -> str:
    named = [name for name in places if name]
    return f"its layers: {', '.join(named[:8])}{', ...' if len(named) > 8 else ''}" if named else ""


def feature_of(output: Any, name: str) -> Tensor:
    """The tensor among a layer's outputs: itself, or the first of a tuple or mapping.

    Raises:
        KdError: there is none, or it holds integers.
    """
    found = first_tensor(output)
    if found is None or not found.is_floating_point():
        raise KdError(f"layer {name!r} returns no tensor of floating numbers, but {type(output).__name__ if found is None else found.dtype}", "choose another layer")
    return found


def probed(model: nn.Module, layers: Iterable[str], batch: Batch) -> tuple[dict[str, Tensor], Any]:
    """The outputs of layers and of the model for one batch, in eval mode and without a graph; batch norm, modes and generators do not change."""
    with random_state_kept(), evaluating(model), Capture(model, layers) as capture:
        output = answered(model, batch)
        return capture.take(), output


def parsed(pairs: Iterable[str]) -> tuple[Pair, ...]:
    """Parse pairs: "student_layer=teacher_layer", or one name for both.

    >>> [str(pair) for pair in parsed(["layer1", "layer2=layer4"])]
    ['layer1=layer1', 'layer2=layer4']
    """
    return tuple(Pair(one, other or one) for one, _, other in (pair.partition("=") for pair in pairs))


def suggested(student: nn.Module, teacher: nn.Module | None, example: Batch, match: str, count: int | None) -> tuple[Pair, ...]:
    """Pairs of layers worth comparing, in order of depth.

    For transformers these are the blocks: if the teacher has k times as many, student block i (from 0) learns from k (i + 1) - 1, as in
    TinyBERT (Jiao et al., 2020, arXiv:1909.10351). For CNNs: the last stage of each map size, paired by size where both have
    it, or the blocks if all maps have one size. For plain nets: the hidden layers.

    Args:
        teacher: None if only its signals are available.
        example: one batch, to get the shapes of the layers' outputs.
        match: "uniform" spreads the pairs over both nets; "last" takes the deepest.
        count: how many; default: one for each layer of the shallower one.

    Raises:
        KdError: no layers can be chosen; the message shows how to name them.

    >>> import torch
    >>> one, two = (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)) for _ in range(2))
    >>> [str(pair) for pair in suggested(one, two, Batch((torch.zeros(4, 2),)), "last", 1)]
    ['3=3']
    """
    if teacher is None:
        raise KdError("can't choose the layers to compare: only the teacher's cached signals are available, not the teacher", _HOW)
    mine, theirs = stages(student, example), stages(teacher, example)
    for model, found in ((student, mine), (teacher, theirs)):
        if not found:
            raise KdError(f"can't choose layers of {type(model).__name__}: no layer outputs a map, tokens or a hidden vector", _HOW)
    if not _alike(mine[-1], theirs[-1]):
        raise KdError(
            f"no common layer: {mine[-1].name} of the student outputs {mine[-1].shape}, {theirs[-1].name} of the teacher {theirs[-1].shape}",
            f"{_HOW}; vectors match vectors, maps and tokens match each other",
        )
    mine, theirs = _by_size(mine, theirs)
    most = min(len(mine), len(theirs))
    chosen = most if count is None else min(count, most)
    return tuple(Pair(one.name, two.name) for one, two in zip(_chosen(mine, match, chosen), _chosen(theirs, match, chosen), strict=True))


_HOW = "name the layers: --layers student_layer=teacher_layer"


def _alike(one: Layer, two: Layer) -> bool:
    """Whether both have places (maps, tokens) or both are vectors."""
    return (len(one.shape) > 2) == (len(two.shape) > 2)


def _by_size(mine: list[Layer], theirs: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """The last layer of each map size that both nets have."""
    if len(mine[-1].shape) != 4 or len(theirs[-1].shape) != 4 or len({layer.size for layer in (*mine, *theirs)}) == 1:
        return mine, theirs
    last_mine, last_theirs = ({layer.size: layer for layer in found} for found in (mine, theirs))
    common = [size for size in last_mine if size in last_theirs]
    return ([last_mine[size] for size in common], [last_theirs[size] for size in common]) if common else (mine, theirs)


def _chosen(layers: list[Layer], match: str, count: int) -> list[Layer]:
    """`count` of the layers: the last ones, or the last of each of `count` equal parts."""
    if match == "last":
        return layers[-count:]
    return [layers[math.floor(len(layers) * (number + 1) / count + 0.5) - 1] for number in range(count)]

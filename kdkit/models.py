"""Models as the kit handles them: copied, frozen for a while, looked at for their traits, sharing what did not change."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from kdkit.contract import Trait
from kdkit.errors import KdError
from kdkit.restoring import restored


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, its parameters without gradients; modes and flags are put back afterwards.

    >>> net = nn.Dropout()
    >>> with frozen(net): net.training
    False
    >>> net.training
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]

    def put_back() -> None:
        for module, mode in modes:
            module.training = mode
        for weight, flag in flags:
            weight.requires_grad_(flag)

    with restored(put_back):
        for module, _ in modes:
            module.training = False
        for weight, _ in flags:
            weight.requires_grad_(False)
        yield model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode under `no_grad`; its modes are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def private_copy(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with `model`.

    Raises:
        KdError: the model can't be copied; the message names the reason.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise KdError(
            f"{type(model).__name__} can't be copied: {error}",
            "a model holds a lock, a generator or a tensor that is part of a graph; remove it before %kd use",
        ) from error


def share_unchanged(model: nn.Module, parent: nn.Module) -> int:
    """Let `model` use the storage of every tensor of `parent` that is equal by name and content; return the bytes saved.

    A tensor of a new name is looked for among those whose names are gone, since a wrapper, such as an adapter, renames what it
    wraps. Both are versions of a session, which nothing changes in place any more.
    """
    saved = 0
    for tensor, other in _counterparts(dict(_tensors(model)), dict(_tensors(parent))):
        if tensor.data_ptr() != other.data_ptr():
            tensor.data = other.data
            saved += tensor.nbytes
    return saved


def _counterparts(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Equal tensors of two models; each at most once, so that two tensors which are equal by chance are not tied."""
    gone = {name: tensor for name, tensor in theirs.items() if name not in mine}
    for name, tensor in mine.items():
        if name in theirs:
            if _same(tensor, theirs[name]):
                yield tensor, theirs[name]
            continue
        found = next((old for old, other in gone.items() if _same(tensor, other)), None)
        if found is not None:
            yield tensor, gone.pop(found)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=True)
    yield from model.named_buffers(remove_duplicate=True)


def _same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    plain = type(tensor.data) is torch.Tensor and type(other.data) is torch.Tensor
    return (
        plain
        and tensor.dtype == other.dtype
        and tensor.shape == other.shape
        and tensor.device == other.device
        and tensor.stride() == other.stride()
        and torch.equal(tensor, other)
    )


SEEN = frozenset(Trait) - {Trait.ENCODED}
"""The traits that `traits_of` can see for itself."""


def traits_of(model: nn.Module) -> frozenset[str]:
    """The traits that can be seen by looking at a model.

    >>> sorted(traits_of(nn.Linear(2, 2)))
    [<Trait.FLOAT_WEIGHTS: 'float_weights'>, <Trait.FREE_STRUCTURE: 'free_structure'>, <Trait.TRAINABLE: 'trainable'>]
    """
    seen = set(getattr(model, "kdkit_traits", ()))
    if seen:
        return frozenset(seen)
    modules = list(model.modules())
    if any(_is_packed(module) for module in modules):
        seen.add(Trait.PACKED_WEIGHTS)
    else:
        seen |= {Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    if any(_made_by(module, "peft.tuners") for module in modules):
        seen.add(Trait.ADAPTERS_ATTACHED)
        seen.discard(Trait.FREE_STRUCTURE)
    if any(name.endswith("_mask") and hasattr(module, name[:-5] + "_orig") for module in modules for name in module._buffers):
        seen.add(Trait.MASKS_PENDING)
    if any("fakequant" in type(module).__name__.lower() for module in modules):
        seen.add(Trait.FAKE_QUANT)
    if any(weight.is_floating_point() for weight in model.parameters()):
        seen.add(Trait.TRAINABLE)
    return frozenset(seen)


def _is_packed(module: nn.Module) -> bool:
    kept = [*module._parameters.values(), *module._buffers.values()]
    subclassed = any(tensor is not None and type(tensor.data) is not torch.Tensor for tensor in kept)
    return (
        subclassed
        or _made_by(module, "torch.ao.nn.quantized", "bitsandbytes", "hqq")
        or any(weight is not None and not (weight.is_floating_point() or weight.is_complex()) for weight in module._parameters.values())
    )


def _made_by(module: nn.Module, *packages: str) -> bool:
    return any(kind.__module__.startswith(package) for kind in type(module).__mro__ for package in packages)


class Served(nn.Module):
    """A function as a model: called with a batch's inputs, it gives logits; a teacher behind a server is asked like this.

    Its attribute `kdkit_identity`, a text of the user's choosing, names what answers; it changes when the answers do.

    >>> Served(lambda x: x.tolist(), "far")(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, ask: Callable, name: str = "teacher"):
        super().__init__()
        self.ask, self.name = ask, name
        self.kdkit_identity = getattr(ask, "kdkit_identity", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function says: tensors, arrays or lists, one row an item; models' output objects pass through.

        Raises:
            KdError: it fails, or gives no numbers or another number of rows.
        """
        told = f"the {'' if self.name == 'teacher' else 'teacher '}{self.name}, a function,"
        inputs = [item for item in (*args, *kwargs.values()) if isinstance(item, torch.Tensor)]
        try:
            answer = self.ask(*args, **kwargs)
        except KdError:
            raise
        except Exception as error:
            raise KdError(f"{told} failed: {type(error).__name__}: {error}", "it is called with a batch's inputs, and returns logits, one row an item") from error
        if isinstance(answer, Mapping) or hasattr(answer, "logits"):
            return answer
        from kdkit.data.batch import as_tensor

        logits = as_tensor(answer, f"{told} gave")
        if inputs and (not logits.ndim or len(logits) != len(inputs[0])):
            raise KdError(f"{told} gave {tuple(logits.shape)} for {len(inputs[0])} items", "it must return one row of logits an item")
        return logits.to(inputs[0].device) if inputs else logits


def adopt_teacher(obj: Any, name: str = "teacher") -> nn.Module:
    """A module out of whatever can be asked: a model, or a function of a batch's inputs.

    Raises:
        KdError: nobody knows how.
    """
    try:
        return adopt(obj)
    except KdError:
        if isinstance(obj, type) or not callable(obj):
            raise
    return Served(obj, name)


def adopt(obj: Any) -> nn.Module:
    """An nn.Module out of whatever a user calls a model.

    Raises:
        KdError: nobody knows how.
    """
    if isinstance(obj, nn.Module):
        return obj
    from kdkit.plugins import manager

    model = manager().first("kdkit_adopt_model", warnings.warn, obj=obj)
    if isinstance(model, nn.Module):
        return model
    hint = f"make an instance of it: {obj.__name__}(...)" if isinstance(obj, type) else "pass a torch nn.Module; plugins can adopt other kinds with kdkit_adopt_model"
    raise KdError(f"{type(obj).__name__ if not isinstance(obj, type) else 'the class ' + obj.__name__} is not a model", hint)

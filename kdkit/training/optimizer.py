"""The optimizer: which weights train, and the learning rate, direction and decay of each group of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.training.options import LoopOptions
from kdkit.training.part import TrainPart

GROUP_KEYS = ("params", "lr_factor", "maximize", "weight_decay")
"""The keys of a dict of `TrainPart.parameter_groups`."""


def make_optimizer(options: LoopOptions, model: nn.Module, parts: Mapping[str, TrainPart]) -> torch.optim.Optimizer:
    """The optimizer over the trainable weights of the model and of the parts' modules.

    The first group holds all weights that no part puts into a group of its own.

    Raises:
        KdError: the model has no weights to train, or a part's groups are not valid.
    """
    weights = trainable_weights(model, parts)
    own = list(_own_groups(model, parts))
    grouped = {id(weight) for group in own for weight in group["params"]}
    groups = [{"params": [weight for weight in weights if id(weight) not in grouped]}, *own]
    rate, decay = options.learning_rate, options.weight_decay
    groups = [group for group in groups if group["params"]]
    match options.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(groups, lr=rate, weight_decay=decay)
        case _:
            return torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's learning rate to its `lr_factor` times `rate`.

    >>> weight = nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([{"params": [weight], "lr_factor": 0.1}], lr=1.0)
    >>> set_learning_rate(optimizer, 0.5)
    >>> optimizer.param_groups[0]["lr"]
    0.05
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


def trainable_weights(model: nn.Module, parts: Mapping[str, TrainPart]) -> list[nn.Parameter]:
    """The weights with `requires_grad`, of the model and then of the parts' modules, each once.

    Raises:
        KdError: the model has none.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        frozen = sum(1 for _ in model.parameters())
        raise KdError(
            f"{type(model).__name__} has no weights to train; all {frozen} are frozen" if frozen else f"{type(model).__name__} has no weights at all",
            "set requires_grad on the weights to train, before %kd use",
        )
    return list({id(weight): weight for weight in (*weights, *extra_weights(parts))}.values())


def extra_weights(parts: Mapping[str, TrainPart]) -> list[nn.Parameter]:
    """The trainable weights of the parts' modules."""
    return [weight for part in parts.values() for weight in part.modules.parameters() if weight.requires_grad]


def _own_groups(model: nn.Module, parts: Mapping[str, TrainPart]) -> Iterable[dict[str, Any]]:
    """The parts' groups, without frozen weights; keys and weights are validated."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    names |= {id(weight): f"{title}: {name}" for title, part in parts.items() for name, weight in part.modules.named_parameters()}
    owners: dict[int, str] = {}
    for title, part in parts.items():
        for group in part.parameter_groups(model):
            _validate(title, group)
            weights = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            for weight in weights:
                _claim(title, weight, names, owners)
            yield {**group, "params": [weight for weight in weights if weight.requires_grad]}


def _validate(title: str, group: Any) -> None:
    if not isinstance(group, Mapping):
        raise KdError(f"{title}: a parameter group is a dict, not a {type(group).__name__}", f"its keys are {', '.join(GROUP_KEYS)}")
    unknown = [key for key in group if key not in GROUP_KEYS]
    if unknown or "params" not in group:
        raise KdError(
            f"{title}: a parameter group has no key {unknown[0]!r}" if unknown else f"{title}: a parameter group has no params",
            f"its keys are {', '.join(GROUP_KEYS)}",
            "a learning rate of its own is a factor of --learning-rate: lr_factor" if unknown[:1] == ["lr"] else "",
        )
    for key in ("lr_factor", "weight_decay"):
        if not isinstance(group.get(key, 0.0), int | float) or not group.get(key, 0.0) >= 0:
            raise KdError(f"{title}: {key} is {group[key]!r}, and must be 0 or more", 'an adversary ascends with "maximize": True' if key == "lr_factor" else "")


def _claim(title: str, weight: Any, names: Mapping[int, str], owners: dict[int, str]) -> None:
    """Note that a part put a weight into a group, which only one may do."""
    if id(weight) not in names:
        raise KdError(f"{title}: a parameter group holds a weight that belongs neither to the model nor to the part's modules", "put it into `modules` in `open`")
    if id(weight) in owners:
        other = owners[id(weight)]
        raise KdError(
            f"{names[id(weight)]} is in two parameter groups{f', of {other} and {title}' if other != title else f' of {title}'}", "put each weight into one group"
        )
    owners[id(weight)] = title

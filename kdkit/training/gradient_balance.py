"""Gradient balance: the gradient norm of each loss term at the first step.

A term whose gradient is a hundred times another's alone decides the update, and the loss curve does not show it. So at the first
optimizer step, on its first batch, the loop computes the gradient of weight x term for each term. This draws no random number
and keeps the graph: the training stays the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.display.table import Cell, Table, number
from kdkit.errors import KdError
from kdkit.training.part import Pull

TOO_FAR = 100.0
"""The ratio of two gradient norms above which one term dominates the other."""
_ROUNDING = 1e-6
"""A gradient below this share of the largest is rounding: the term is at its minimum, or does not depend on the weights."""
_ALIKE = 1e-5
"""A value below this share of the largest term's: the term is at its minimum already."""
_FEW = 4
"""Up to how many terms the note lists all."""


@dataclass(frozen=True)
class TermValue:
    """One term's share of a step's loss, with its graph.

    Attributes:
        name: in reports.
        value: scalar, without its weight.
        weight: at this step.
        declared: its weight over the training; a term that starts with weight 0 is computed with its largest weight.
        pull: how strongly it should act, if the loop chooses that; its groups begin with the name of the part where several train.
        factor: of `weight` and `declared`, chosen by the loop.
        label_loss: whether it is the loss on labels.
    """

    name: str
    value: Tensor
    weight: float
    declared: float | Callable[[float], float]
    pull: Pull | None = None
    factor: float = 1.0
    label_loss: bool = False


@dataclass(frozen=True)
class TermGradient:
    """One term's value, its weight, and the norm of the gradient of their product.

    Attributes:
        later: its weight starts at 0; `weight` is the largest of the training.
    """

    name: str
    value: float
    weight: float
    gradient: float
    later: bool = False


def gradient_norms(shares: Sequence[TermValue], weights: Sequence[nn.Parameter], scale: float = 1.0) -> list[TermGradient]:
    """The gradient of each term; terms of one name are added, and terms that do not depend on the weights are left out.

    Args:
        shares: of one batch; their graph is kept.
        weights: the gradient is with respect to them.
        scale: loss scale, so that gradients do not underflow in half precision.

    >>> weight = nn.Parameter(torch.tensor([3.0]))
    >>> gradient_norms([TermValue("a", (2 * weight).sum(), 0.5, 0.5)], [weight])
    [TermGradient(name='a', value=6.0, weight=0.5, gradient=1.0, later=False)]
    """
    named: dict[str, list[TermValue]] = {}
    for share in shares:
        named.setdefault(share.name, []).append(share)
    found = []
    for name, group in named.items():
        later = all(share.weight == 0 for share in group)
        factors = [share.factor * (heaviest(share.declared) if later else share.weight) for share in group]
        gradient = gradient_norm([share.value * factor for share, factor in zip(group, factors, strict=True)], weights, scale)
        if gradient is None:
            continue  # it trains extra modules only, such as a peer
        found.append(TermGradient(name, float(sum(share.value.detach() for share in group)), factors[0], gradient, later and any(factors)))
    return found


def gradient_norm(values: Sequence[Tensor], weights: Sequence[nn.Parameter], scale: float = 1.0) -> float | None:
    """The norm of the gradient of the sum of scalars, whose graph is kept; 0 without any, None if no weight can change them.

    >>> weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> gradient_norm([weight.square().sum() / 2], [weight]), gradient_norm([torch.ones(())], [weight])
    (5.0, 0.0)
    """
    reaching = [value * scale for value in values if value.requires_grad]
    gradients = gradients_of(reaching, weights) if reaching else ()
    norms = [gradient.detach().float().norm() for gradient in gradients if gradient is not None]
    if reaching and not norms:
        return None
    return float(torch.stack(norms).norm()) / scale if norms else 0.0


def gradients_of(values: Sequence[Tensor], weights: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of scalars, whose graph is kept; None for a weight that they do not depend on.

    Raises:
        KdError: reentrant checkpointing is in the graph, which gives gradients to `backward` only, and here none or too few.
        RuntimeError: torch can't compute them, such as for too little memory.

    >>> weight, unused = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.ones(1))
    >>> gradients_of([weight.square().sum()], [weight, unused])
    (tensor([6.]), None)
    """
    if _is_checkpointed(values):
        raise KdError("gradient checkpointing with use_reentrant=True allows only one backward pass")
    return torch.autograd.grad(list(values), weights, retain_graph=True, allow_unused=True)


def _is_checkpointed(values: Sequence[Tensor]) -> bool:
    """Whether the graph of any value contains a layer that computes its weights' gradients by a backward pass of its own."""
    seen: set[Any] = set()
    ahead = [value.grad_fn for value in values]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name().startswith("CheckpointFunction"):
            return True
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
    return False


def heaviest(weight: float | Callable[[float], float]) -> float:
    """The largest weight of a schedule, sampled at eleven points.

    >>> heaviest(lambda progress: 2 * progress)
    2.0
    """
    return max((float(weight(index / 10)) for index in range(11)), key=abs) if callable(weight) else float(weight)


class GradientBalance:
    """The gradient norms of all terms at the first step.

    Args:
        gradient_norms: of all terms.
        option_for_weight: (term, factor, other) -> the option that multiplies the term's weight by the factor and keeps the
            other's; "" if there is none.

    >>> GradientBalance([TermGradient("label", 1.4, 0.1, 0.05), TermGradient("hints", 0.2, 9.0, 25.0)])
    the first step
    term   value  weight  gradient norm
    label    1.4     0.1           0.05
    hints    0.2       9             25
    """

    def __init__(self, gradient_norms: Sequence[TermGradient], option_for_weight: Callable[[str, float, str], str] = lambda name, factor, other: ""):
        self.gradient_norms = tuple(gradient_norms)
        self._warning = self._warn(option_for_weight)

    @property
    def note(self) -> str:
        """All terms in one line."""
        if len(self.gradient_norms) > _FEW:
            least, most = self._ends()
            return (
                f"first step: {len(self.gradient_norms)} terms, with gradient norms from {_short(least.gradient)} ({least.name}) to {_short(most.gradient)} ({most.name})"
            )
        each = [f"{term.name} {_short(term.value)} x {_short(term.weight)}{' later' if term.later else ''}, {_short(term.gradient)}" for term in self.gradient_norms]
        return f"first step (value x weight, gradient norm): {'; '.join(each)}"

    @property
    def warning(self) -> str:
        """Which term dominates which, and an option that balances them; empty if none does."""
        return self._warning

    def _warn(self, option_for_weight: Callable[[str, float, str], str]) -> str:
        least, most = self._ends()
        if not least.gradient or most.gradient <= TOO_FAR * least.gradient:
            return ""
        ratio = most.gradient / least.gradient
        found = f"{most.name} dominates {least.name}: at the first step its gradient is {number(ratio)} times as large"
        remedies = ((most.name, 1 / ratio, least.name), (least.name, ratio, most.name))
        remedy = next((f"{option} would balance them" for each in remedies if (option := option_for_weight(*each))), "")
        return f"{found}; {remedy or f'{most.name} with {1 / ratio:.2g} times its weight would balance them'}"

    def _ends(self) -> tuple[TermGradient, TermGradient]:
        """The terms with the smallest and the largest gradient, without terms at their minimum."""
        finite = [term for term in self.gradient_norms if term.gradient < float("inf")] or list(self.gradient_norms)
        most = max(finite, key=lambda term: term.gradient)
        learning = (term for term in finite if term.gradient > _ROUNDING * most.gradient and abs(term.value) >= _ALIKE * abs(most.value))
        return min(learning, key=lambda term: term.gradient, default=most), most

    @property
    def table(self) -> Table:
        """One row per term."""
        rows = [
            [term.name, _Number(term.value), Cell(_short(term.weight), "later; now 0") if term.later else _Number(term.weight), _Number(term.gradient)]
            for term in self.gradient_norms
        ]
        return Table(["term", "value", "weight", "gradient norm"], rows, "the first step")

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


@dataclass(frozen=True)
class _Number:
    value: float

    def text(self) -> str:
        return _short(self.value)


def _short(value: float) -> str:
    return f"{value:.3g}"

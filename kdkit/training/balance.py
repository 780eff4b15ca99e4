"""The balance: what each term of a loss weighs at the first step, before anything is learnt.

A term whose gradient is a hundred times another's decides alone where the weights go, and the loss curve does not show it.
So at the first optimizer step, on its first batch, the gradient of weight x term by the model's trainable weights is taken
for each term by itself. It draws no random number and leaves the graph whole: the training is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdkit.table import Cell, Table, number

TOO_FAR = 100.0
"""The ratio of two gradients above which one term swamps the other."""
_ROUNDING = 1e-6
"""A gradient of less than this share of the largest is what rounding left: the term is fulfilled, or does not reach the weights."""
_ALIKE = 1e-5
"""A value of less than this share of the largest term's: what it compares is alike already, and no weight would change that."""
_FEW = 4
"""Terms up to which the note names all."""


@dataclass(frozen=True)
class Share:
    """One term's share of a step's loss, with its graph.

    Attributes:
        name: as it is shown.
        value: scalar, without its weight.
        weight: at this step.
        declared: its weight over the training; a term that begins with weight 0 is looked at with the largest it will have.
    """

    name: str
    value: Tensor
    weight: float
    declared: float | Callable[[float], float]


@dataclass(frozen=True)
class Pull:
    """How hard one term pulls: its value, its weight, and the norm of the gradient of their product by the weights.

    Attributes:
        later: its weight is 0 at first, and the largest it will have is told.
    """

    name: str
    value: float
    weight: float
    gradient: float
    later: bool = False


def pulls(shares: Sequence[Share], weights: Sequence[nn.Parameter], scale: float = 1.0) -> list[Pull]:
    """Take each term's gradient by itself; terms of one name count together, and those that do not reach the weights not at all.

    Args:
        shares: of one batch; their graph is kept.
        weights: by which the gradient is taken.
        scale: what values are multiplied by for backward, so that half precision does not lose them.

    >>> weight = nn.Parameter(torch.tensor([3.0]))
    >>> pulls([Share("a", (2 * weight).sum(), 0.5, 0.5)], [weight])
    [Pull(name='a', value=6.0, weight=0.5, gradient=1.0, later=False)]
    """
    named: dict[str, list[Share]] = {}
    for share in shares:
        named.setdefault(share.name, []).append(share)
    found = []
    for name, group in named.items():
        later = all(share.weight == 0 for share in group)
        factors = [heaviest(share.declared) if later else share.weight for share in group]
        reaching = [share.value * factor for share, factor in zip(group, factors, strict=True) if share.value.requires_grad and factor]
        gradients = torch.autograd.grad([value * scale for value in reaching], weights, retain_graph=True, allow_unused=True) if reaching else ()
        if reaching and all(gradient is None for gradient in gradients):
            continue  # it trains what stands beside the model, such as a peer
        found.append(Pull(name, float(sum(share.value.detach() for share in group)), factors[0], _norm(gradients) / scale, later and any(factors)))
    return found


def _norm(gradients: Sequence[Tensor | None]) -> float:
    norms = [gradient.detach().float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def heaviest(weight: float | Callable[[float], float]) -> float:
    """The largest weight that a schedule gives, as far as eleven looks can tell.

    >>> heaviest(lambda progress: 2 * progress)
    2.0
    """
    return max((float(weight(index / 10)) for index in range(11)), key=abs) if callable(weight) else float(weight)


class Balance:
    """The terms at the first step, side by side.

    Args:
        pulls: of all terms.
        reweighted: (term, factor, other) -> how its weight is multiplied by that, and the other's is not, as an option of the
            line; "" where no option does.

    >>> Balance([Pull("label", 1.4, 0.1, 0.05), Pull("hints", 0.2, 9.0, 25.0)])
    the first step
    term   value  weight  gradient norm
    label    1.4     0.1           0.05
    hints    0.2       9             25
    """

    def __init__(self, pulls: Sequence[Pull], reweighted: Callable[[str, float, str], str] = lambda name, factor, other: ""):
        self.pulls = tuple(pulls)
        self._warning = self._warn(reweighted)

    @property
    def note(self) -> str:
        """All of it in one line."""
        if len(self.pulls) > _FEW:
            least, most = self._ends()
            return f"first step: {len(self.pulls)} terms, with gradient norms from {_short(least.gradient)} ({least.name}) to {_short(most.gradient)} ({most.name})"
        each = [f"{pull.name} {_short(pull.value)} x {_short(pull.weight)}{' later' if pull.later else ''}, {_short(pull.gradient)}" for pull in self.pulls]
        return f"first step (value x weight, gradient norm): {'; '.join(each)}"

    @property
    def warning(self) -> str:
        """Which term swamps which, and what would make them even; empty where none does."""
        return self._warning

    def _warn(self, reweighted: Callable[[str, float, str], str]) -> str:
        least, most = self._ends()
        if not least.gradient or most.gradient <= TOO_FAR * least.gradient:
            return ""
        ratio = most.gradient / least.gradient
        said = f"{most.name} swamps {least.name}: at the first step its gradient is {number(ratio)} times as large"
        remedies = ((most.name, 1 / ratio, least.name), (least.name, ratio, most.name))
        remedy = next((f"{option} would make them even" for each in remedies if (option := reweighted(*each))), "")
        return f"{said}; {remedy or f'{most.name} with {1 / ratio:.2g} times its weight would make them even'}"

    def _ends(self) -> tuple[Pull, Pull]:
        """The weakest pull of a term with something left to learn, and the strongest."""
        finite = [pull for pull in self.pulls if pull.gradient < float("inf")] or list(self.pulls)
        most = max(finite, key=lambda pull: pull.gradient)
        learning = (pull for pull in finite if pull.gradient > _ROUNDING * most.gradient and abs(pull.value) >= _ALIKE * abs(most.value))
        return min(learning, key=lambda pull: pull.gradient, default=most), most

    @property
    def table(self) -> Table:
        """A row a term."""
        rows = [
            [pull.name, _Number(pull.value), Cell(_short(pull.weight), "later; now 0") if pull.later else _Number(pull.weight), _Number(pull.gradient)]
            for pull in self.pulls
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

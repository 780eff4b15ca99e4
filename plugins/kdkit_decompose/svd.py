"""SVD: a linear layer or a convolution as two thinner ones."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kdkit import param
from kdkit_decompose.factors import singular_values
from kdkit_decompose.forms import FORMS, Form
from kdkit_decompose.low_rank import LowRankStage
from kdkit_decompose.ranks import by_ratio


class Svd(LowRankStage):
    """Replace linear layers and convolutions by products of two thinner ones, by truncated singular value decomposition.

    A linear layer W (out, in) becomes a plain Sequential(Linear(in, r), Linear(r, out)): r·(out + in) parameters and multiply-adds. A
    convolution k x k becomes one with r channels and one of 1x1 (Zhang et al., 2015), the reverse, or k x 1 and 1 x k (Jaderberg et al., 2014).
    The rank comes from one of `ratio`, `energy`, `budget` and `rank`. Where the session has data, errors are weighed by the inputs that a
    layer really gets (Wang et al., "SVD-LLM", 2024). Train afterwards: `distill soft` or `tune finetune`.

    Left alone, and named in the notes: layers where the product would cost parameters or time, convolutions in groups and transposed ones,
    tied layers, those whose weights are packed or masked, and those whose weight is read past their forward.
    """

    id: ClassVar = "decompose.svd"
    known_as: ClassVar[tuple[str, ...]] = ("low-rank", "low-rank factorization", "truncated SVD")
    works_on: ClassVar = "linear layers and convolutions"

    form: Literal["auto", "channel", "input", "spatial"] = param(
        "auto",
        "a convolution becomes a smaller one and a 1x1 (channel), the other way round (input), k x 1 and 1 x k (spatial), or whichever keeps most of its weight (auto)",
    )

    def form_of(self, layer: Any) -> Form:
        """The only form that fits, the one that `form` names, or the one that keeps more of the weight at an equal number of parameters."""
        fitting = [form for form in FORMS if form.fits(layer)]
        named = [form for form in fitting if form.name == self.form]
        share = self.ratio or self.budget or 0.5

        def energy_kept(form: Form) -> float:
            squares = singular_values(layer, form).double().square()
            return float(squares[: by_ratio(form.shape(layer), share)].sum())

        return (named or fitting)[0] if named or len(fitting) == 1 else max(fitting, key=energy_kept)

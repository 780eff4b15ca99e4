"""What of a teacher's answers must be kept: bytes a row against the error of the student's gradient.

    python -m tests.benchmarks.bench_topk

A vocabulary of 32,000 classes with Zipf tails: the teacher's logits are -a · log(rank), where a differs by row (lognormal
around 1.47); the student says 0.8 of them and noise of its own. The setting is chosen so that 64 classes hold .80 of the
teacher's mass; flatter tails, shown below, cost more. Compared with the exact gradient of the forward divergence are: one
event for the rest (kdkit's); the kept shares scaled up to 1; the kept shares as they are, with nothing said of the rest.
Values are kept in half precision, class numbers in as many bits as they need.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from kdkit_distill.response.divergences import soft_labels
from kdkit_distill.signals import TopK, top_k
from tests.benchmarks.timing import keep

CLASSES, ROWS = 32_000, 256


def zipf(rows: int = ROWS, exponent: float = 1.47, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher, (rows, CLASSES) float64, classes in order of the teacher's rank."""
    # quantiles of the lognormal and not draws: few rows then have the same mean as many
    spread = torch.special.ndtri((torch.arange(rows).double() + 0.5) / rows)
    teacher = -exponent * (0.3 * spread[:, None]).exp() * torch.arange(1, CLASSES + 1).double().log()
    noise = torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.8 * teacher + 0.75 * noise, teacher


def bytes_of(k: int, classes: int) -> int:
    """Bytes a row: k class numbers in the bits they need, k values and the tail in half precision."""
    return math.ceil(k * (classes - 1).bit_length() / 8) + 2 * k + 2


def gradient(student: Tensor, teacher: Tensor | TopK) -> Tensor:
    """Of the forward divergence, by the student's logits."""
    student = student.clone().requires_grad_()
    soft_labels(student, teacher).sum().backward()
    assert student.grad is not None
    return student.grad


def gradient_error(student: Tensor, teacher: Tensor, kept: TopK) -> float:
    """How far the gradient from what was kept is from the exact one, relative to it, in L2 over all rows."""
    return relative(gradient(student, kept), gradient(student, teacher))


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def without_tail(student: Tensor, kept: TopK, scaled: bool) -> Tensor:
    """The gradient where the rest is forgotten: mass · p_s - p_t, with the kept shares as they are or scaled up to 1."""
    share = kept.values.double().exp()
    share = share / share.sum(-1, keepdim=True) if scaled else share
    return (share.sum(-1, keepdim=True) * student.softmax(-1)).scatter_add(-1, kept.indices, -share)


def row(student: Tensor, teacher: Tensor, exact: Tensor, k: int) -> list[str]:
    kept = top_k(teacher, k)
    mass = kept.values.exp().sum(-1).mean()
    kept = replace(kept, values=kept.values.half(), tail=kept.tail.half())
    found = [gradient(student, kept), without_tail(student, kept, scaled=True), without_tail(student, kept, scaled=False)]
    return [str(k), str(bytes_of(k, CLASSES)), f"{mass:.3f}", *(f"{relative(each, exact):.3f}" for each in found)]


def main() -> None:
    rows = []
    for exponent in (1.47, 1.3):
        student, teacher = zipf(exponent=exponent)
        exact = gradient(student, teacher)
        rows += [[f"{exponent}", *row(student, teacher, exact, k)] for k in (1, 8, 32, 64, 128)]
    head = ["Zipf exponent", "k", "bytes a row", "teacher's mass", "error, one event for the rest", "error, scaled up to 1", "error, the rest forgotten"]
    keep("topk", {"seed": 0, "n": f"{ROWS} rows", "classes": CLASSES, "dense fp16": f"{2 * CLASSES} bytes a row"}, head, rows)


if __name__ == "__main__":
    main()

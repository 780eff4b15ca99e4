"""Each objective in the kit's loop against a hand-written PyTorch loop for the same objective, uncached.

Goal: kit / hand-written <= 1.03. Student, teacher, data, batch size and optimizer are the same; projections and banks train in both.
The loops take turns step by step, see bench_training_loop, and counted is CPU time. The hand-written losses are what a careful
person writes: vectorised, the teacher under no_grad, one look at the loss a step.

    python -m tests.benchmarks.bench_objectives [--rounds 5] [--only soft hints]

Nothing here asserts a time; the table is printed and written to results/objectives.json and .md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdkit.pipelines.pipeline import Pipeline
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit.training import Step, TrainPart, fit
from tests.benchmarks.bench_training_loop import BATCH, RATE, SEED, cnn, images
from tests.benchmarks.timing import keep

WIDTH, ITEMS, NEGATIVES = 8, 3200, 1024
LOWER, UPPER = 7, 11
"""The layers of `cnn` whose maps are compared: 8 x 8 and 4 x 4."""
WARM = 5
"""First steps of a round, which are left out."""


@dataclass
class Seen:
    """What a hand-written loss is made of: logits, both layers' maps, labels, the items' numbers, and what trains beside the student."""

    student: Tensor
    teacher: Tensor
    mine: Sequence[Tensor]
    theirs: Sequence[Tensor]
    labels: Tensor
    numbers: Tensor
    beside: Any

    @property
    def pooled(self) -> tuple[Tensor, Tensor]:
        """One vector an item of both nets' upper maps."""
        return self.mine[-1].mean((2, 3)), self.theirs[-1].mean((2, 3))


def _soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature**2 * F.kl_div((student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1), reduction="batchmean", log_target=True)


def soft(seen: Seen) -> Tensor:
    """KD, T = 4."""
    return _soft(seen.student, seen.teacher, 4.0)


def decoupled(seen: Seen) -> Tensor:
    """DKD, in log space."""
    chosen = F.one_hot(seen.labels, seen.student.shape[1]).bool()

    def parted(logits: Tensor) -> tuple[Tensor, Tensor]:
        scaled = logits / 4.0
        others = scaled.masked_fill(chosen, -torch.inf)
        whole, rest = scaled.logsumexp(1), others.logsumexp(1)
        return torch.stack([scaled[chosen] - whole, rest - whole], 1), (scaled[~chosen].view(len(logits), -1) - rest[:, None])

    (stated, reported_of_others), (asked, asked_of_others) = parted(seen.student), parted(seen.teacher)
    target = (asked.exp() * (asked - stated)).sum(1)
    other = (asked_of_others.exp() * (asked_of_others - reported_of_others)).sum(1)
    return 16.0 * (target + 8.0 * other).mean()


def correlation(seen: Seen) -> Tensor:
    """DIST."""

    def pearson(one: Tensor, two: Tensor) -> Tensor:
        one, two = one - one.mean(1, keepdim=True), two - two.mean(1, keepdim=True)
        return ((one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1) + 1e-8)).mean()

    one, two = seen.student.softmax(1), seen.teacher.softmax(1)
    return 2 - pearson(one, two) - pearson(one.T, two.T)


def standardized(seen: Seen) -> Tensor:
    """LogitStd."""

    def scaled(logits: Tensor) -> Tensor:
        return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)

    return _soft(scaled(seen.student), scaled(seen.teacher), 2.0)


def hints(seen: Seen) -> Tensor:
    """FitNets."""
    return F.mse_loss(seen.beside(seen.mine[-1]), seen.theirs[-1])


def attention(seen: Seen) -> Tensor:
    """AT."""
    one, two = (F.normalize(each[-1].square().mean(1).flatten(1)) for each in (seen.mine, seen.theirs))
    return (one - two).square().mean()


class Gaussian(nn.Module):
    """What VID trains beside the student."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        sizes = (inputs, outputs, outputs)
        layers = [layer for size in sizes for layer in (nn.Conv2d(size, outputs, 1, bias=False), nn.ReLU())]
        self.mean, self.scale = nn.Sequential(*layers[:-1]), nn.Parameter(torch.full((outputs,), math.log(math.expm1(5.0))))


def variational(seen: Seen) -> Tensor:
    """VID."""
    variance = (F.softplus(seen.beside.scale) + 1e-5)[:, None, None]
    return 0.5 * ((seen.beside.mean(seen.mine[-1]) - seen.theirs[-1]).square() / variance + variance.log()).mean()


class Banks(nn.Module):
    """What CRD trains and keeps beside the student."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.one, self.two = nn.Linear(inputs, 128), nn.Linear(outputs, 128)
        self.banks = [F.normalize(torch.randn(ITEMS, 128)) for _ in range(2)]
        self.z: list[Tensor | None] = [None, None]


def contrast(seen: Seen) -> Tensor:
    """CRD, as RepDistiller does it: the drawn rows of the bank, and products with them. Negatives are any items."""
    embedded = [F.normalize(layer(each)) for layer, each in zip((seen.beside.one, seen.beside.two), seen.pooled, strict=True)]
    drawn = torch.cat([seen.numbers[:, None], torch.randint(ITEMS, (len(seen.numbers), NEGATIVES))], 1)
    total, share = torch.zeros(()), NEGATIVES / ITEMS
    for side, anchor in enumerate(embedded):
        rows = seen.beside.banks[1 - side][drawn.flatten()].view(*drawn.shape, 128)
        odds = torch.exp(torch.bmm(rows, anchor[..., None]).squeeze(-1) / 0.07)
        if seen.beside.z[side] is None:
            seen.beside.z[side] = odds.detach().mean() * ITEMS
        odds = odds / seen.beside.z[side]
        total = total - ((odds[:, 0] / (odds[:, 0] + share)).log().sum() + (share / (odds[:, 1:] + share)).log().sum()) / len(anchor)
    with torch.no_grad():
        for bank, new in zip(seen.beside.banks, embedded, strict=True):
            bank[seen.numbers] = F.normalize(0.5 * bank[seen.numbers] + 0.5 * new)
    return total


def similarity(seen: Seen) -> Tensor:
    """SP."""
    one, two = (F.normalize(rows @ rows.T) for rows in (seen.mine[-1].flatten(1), seen.theirs[-1].flatten(1)))
    return (one - two).square().mean()


def relations(seen: Seen) -> Tensor:
    """RKD."""

    def relative(rows: Tensor) -> Tensor:
        apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        return apart / apart[apart > 0].mean()

    def cosines(rows: Tensor) -> Tensor:
        directions = F.normalize(rows[None] - rows[:, None], dim=2)
        return torch.bmm(directions, directions.transpose(1, 2))

    one, two = seen.pooled
    return 25 * F.smooth_l1_loss(relative(one), relative(two)) + 50 * F.smooth_l1_loss(cosines(one), cosines(two))


def probability(seen: Seen) -> Tensor:
    """PKT, without an item's own share."""

    def shares(rows: Tensor) -> Tensor:
        rows = F.normalize(rows)
        kernel = (rows @ rows.T + 1) / 2
        kernel = kernel[~torch.eye(len(rows), dtype=torch.bool)].view(len(rows), -1)
        return kernel / kernel.sum(1, keepdim=True)

    stated, asked = map(shares, seen.pooled)
    return (asked * ((asked + 1e-7) / (stated + 1e-7)).log()).sum(1).mean()


def correlation_congruence(seen: Seen) -> Tensor:
    """CC, gamma .4, order 2."""

    def kernel(rows: Tensor) -> Tensor:
        rows = F.normalize(rows)
        cosines = 0.8 * (rows @ rows.T)
        return math.exp(-0.8) * (1 + cosines + cosines.square() / 2)

    one, two = map(kernel, seen.pooled)
    return (one - two).square().mean()


class Bridges(nn.ModuleList):
    """What FSP trains beside the student where channels differ."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]):
        super().__init__(nn.Conv2d(one, two, 1, bias=False) for one, two in zip(inputs, outputs, strict=True))


def flow(seen: Seen) -> Tensor:
    """FSP."""

    def products(lower: Tensor, upper: Tensor) -> Tensor:
        lower = F.adaptive_avg_pool2d(lower, upper.shape[2:]).flatten(2)
        return torch.bmm(lower, upper.flatten(2).transpose(1, 2)) / lower.shape[2]

    bridged = [bridge(each) for bridge, each in zip(seen.beside, seen.mine, strict=True)]
    return (products(*bridged) - products(*seen.theirs)).square().mean()


@dataclass(frozen=True)
class Work:
    """A technique's line, its loss by hand, and what that trains beside the student, made of both nets' channels at the two layers."""

    line: str
    loss: Callable[[Seen], Tensor]
    beside: Callable[[Sequence[int], Sequence[int]], nn.Module | None] = lambda mine, theirs: None


WORKS = (
    Work("soft", soft),
    Work("decoupled", decoupled),
    Work("correlation", correlation),
    Work("standardized", standardized),
    Work(f"hints --layers {UPPER}", hints, lambda mine, theirs: nn.Conv2d(mine[-1], theirs[-1], 1)),
    Work(f"attention --layers {UPPER}", attention),
    Work(f"variational --layers {UPPER}", variational, lambda mine, theirs: Gaussian(mine[-1], theirs[-1])),
    Work(f"contrast --layers {UPPER} --negatives {NEGATIVES}", contrast, lambda mine, theirs: Banks(mine[-1], theirs[-1])),
    Work(f"similarity --layers {UPPER}", similarity),
    Work(f"relations --layers {UPPER}", relations),
    Work(f"probability --layers {UPPER}", probability),
    Work(f"correlation-congruence --layers {UPPER}", correlation_congruence),
    Work(f"flow --layers {LOWER} {UPPER}", flow, Bridges),
)


def through(net: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits of `cnn`, and its maps at the two layers."""
    lower = net[: LOWER + 1](x)
    upper = net[LOWER + 1 : UPPER + 1](lower)
    return net[UPPER + 1 :](upper), [lower, upper]


def by_hand(work: Work, stage: Any, data: tuple[Tensor, Tensor], teacher: nn.Module) -> Iterator[None]:
    """One epoch, as a careful person writes it, paused after each step."""
    student = cnn(WIDTH, SEED)
    with torch.no_grad():
        mine, theirs = ([each.shape[1] for each in through(net, data[0][:2])[1]] for net in (cnn(WIDTH, SEED).eval(), teacher))
    beside = work.beside(mine, theirs)
    loader = DataLoader(TensorDataset(*data, torch.arange(len(data[0]))), BATCH, shuffle=True)
    optimizer = torch.optim.AdamW([*student.parameters(), *(beside.parameters() if beside is not None else ())], lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / len(loader))))
    student.train()
    for x, y, numbers in loader:
        logits, maps = through(student, x)
        with torch.no_grad():
            asked, asked_maps = through(teacher, x)
        taught = work.loss(Seen(logits, asked, maps, asked_maps, y, numbers, beside))
        loss = (1 - stage.alpha) * F.cross_entropy(logits, y) + stage.alpha * stage.weight * taught
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is not finite")
        yield


def turns(work: Work, data: tuple[Tensor, Tensor], teacher: nn.Module) -> tuple[list[float], list[float]]:
    """CPU seconds of each step, the kit's and by hand, taken in turn through one epoch."""
    (stage,) = Pipeline.from_lines(f"distill {work.line} --learning-rate {RATE}").stages
    hand, kit_s, hand_s, ended = by_hand(work, stage, data, teacher), [], [], [time.process_time()]

    class Measured(type(stage)):  # type: ignore[misc]
        """The stage, taking turns."""

        def part(self, model: nn.Module, context: Context) -> TrainPart:
            part = super().part(model, context)
            part.after_step = after_step
            return part

    def after_step(step: Step) -> None:
        began = time.process_time()
        next(hand, None)
        kit_s.append(began - ended[0])
        ended[0] = time.process_time()
        hand_s.append(ended[0] - began)

    fit(cnn(WIDTH, SEED), [Measured(**dict(stage))], Context(Classification(), seed=SEED, objects={"train": adopt_data(data, BATCH), "teacher": teacher}))
    return kit_s[WARM:-1], hand_s[WARM:-1]


def main(rounds: int, only: Sequence[str]) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    data, teacher = images(ITEMS), cnn(2 * WIDTH, 1).eval().requires_grad_(False)
    rows = []
    for work in WORKS:
        if only and work.loss.__name__.replace("_", "-") not in only:
            continue
        found = [turns(work, data, teacher) for _ in range(rounds + 1)][1:]
        kit, hand = ([seconds for each in found for seconds in each[side]] for side in (0, 1))
        ratios = sorted(sum(each[0]) / sum(each[1]) for each in found)
        ratio = f"{statistics.median(kit) / statistics.median(hand):.3f} ({ratios[0]:.3f} - {ratios[-1]:.3f})"
        rows.append([f"`{work.line}`", len(kit), f"{1e3 * statistics.median(hand):.2f}", f"{1e3 * statistics.median(kit):.2f}", ratio])
        print(rows[-1], flush=True)
    facts = {"n": f"{rounds} rounds", "seed": SEED, "batch": BATCH, "student": f"CNN of width {WIDTH}", "teacher": f"width {2 * WIDTH}"}
    if not only:
        keep("objectives", facts, ("distill", "steps", "by hand, ms a step", "kit, ms a step", "ratio of medians (rounds, sum over sum)"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="techniques; the table is then not kept")
    asked = parser.parse_args()
    main(asked.rounds, asked.only)

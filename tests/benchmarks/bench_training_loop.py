"""The kit's training loop against a hand-written PyTorch loop doing the same work.

Goal: kit / hand-written <= 1.03. Both train the same model on the same data with the same batch size, optimizer and rate
schedule. They take turns step by step (the hand-written step runs inside a hook of the kit's loop), so that the machine's
moods meet both alike; a turn spans everything from one batch to the next, loading and progress included. Counted is CPU
time, which other processes disturb less; what a fit costs before its first step stands apart.

    python -m tests.benchmarks.bench_training_loop [--rounds 5] [--threads 1]

Nothing here asserts a time; the table is printed and written to results/training_loop.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit.training import Step, Term, TrainPart, fit
from kdkit_distill.response.soft import Soft
from kdkit_tune.finetune import Finetune

SEED, BATCH, RATE = 0, 64, 0.01
TEMPERATURE, ALPHA = 4.0, 0.9
RESULTS = Path(__file__).parent / "results"


def cnn(width: int, seed: int) -> nn.Module:
    """Three convolutions with batch norm on 32 x 32 images."""
    torch.manual_seed(seed)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*block(3, width), *block(width, width), *block(width, 2 * width), nn.Flatten(), nn.Linear(32 * width, 10))


def images(items: int) -> tuple[Tensor, Tensor]:
    """Random images: what they show costs no time."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(items, 3, 32, 32, generator=generator), torch.randint(10, (items,), generator=generator)


def by_hand(model: nn.Module, data: tuple[Tensor, Tensor], teacher: nn.Module | None) -> Iterator[None]:
    """One epoch, as a careful person writes it, paused after each step: shuffled loader, cosine schedule, teacher in eval."""
    loader = DataLoader(TensorDataset(*data), BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / len(loader))))
    model.train()
    for x, y in loader:
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y)
        if teacher is not None:
            with torch.no_grad():
                asked = teacher(x)
            soft = nn.functional.kl_div((logits / TEMPERATURE).log_softmax(-1), (asked / TEMPERATURE).softmax(-1), reduction="batchmean")
            loss = (1 - ALPHA) * loss + ALPHA * TEMPERATURE**2 * soft
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is not finite")
        yield


class Turns(TrainPart):
    """A part as it is, with a step of the hand-written loop after each of the kit's, and the time of both."""

    def __init__(self, part: TrainPart, hand: Iterator[None]):
        self.part, self.hand = part, hand
        self.kit_s: list[float] = []
        self.hand_s: list[float] = []
        self.ended = time.process_time()

    def open(self, model: nn.Module) -> None:
        self.part.open(model)

    def terms(self, step: Step) -> Iterable[Term]:
        return self.part.terms(step)

    def close(self, model: nn.Module) -> None:
        self.part.close(model)

    def after_step(self, step: Step) -> None:
        began = time.process_time()
        next(self.hand, None)
        self.kit_s.append(began - self.ended)
        self.ended = time.process_time()
        self.hand_s.append(self.ended - began)


def turns(width: int, data: tuple[Tensor, Tensor], teacher: nn.Module | None) -> tuple[Turns, float]:
    """Both loops, one epoch; and what the kit did before its first step, in CPU seconds less an ordinary step."""
    taken: list[Turns] = []

    class Measured(Finetune if teacher is None else Soft):  # type: ignore[misc]
        """The stage, taking turns."""

        def part(self, model: nn.Module, context: Context) -> TrainPart:
            taken.append(Turns(super().part(model, context), by_hand(cnn(width, SEED), data, teacher)))
            return taken[0]

    options = {"learning_rate": RATE} | ({} if teacher is None else {"temperature": TEMPERATURE, "alpha": ALPHA})
    began = time.process_time()
    fit(cnn(width, SEED), [Measured(**options)], Context(Classification(), seed=SEED, objects={"train": adopt_data(data, BATCH), "teacher": teacher}))
    whole = time.process_time() - began
    return taken[0], whole - sum(taken[0].kit_s[1:]) - sum(taken[0].hand_s) - statistics.median(taken[0].kit_s)


def compare(width: int, items: int, taught: bool, rounds: int) -> dict[str, float | int | str]:
    """Rounds of one epoch; the first steps of each warm both up and are left out."""
    data, teacher = images(items), cnn(2 * width, 1).eval().requires_grad_(False) if taught else None
    found = [turns(width, data, teacher) for _ in range(rounds + 1)][1:]
    kit, hand = ([second for each, _ in found for second in getattr(each, name)[5:-1]] for name in ("kit_s", "hand_s"))
    ratios = sorted(sum(each.kit_s[5:-1]) / sum(each.hand_s[5:-1]) for each, _ in found)
    return {
        "work": f"{'distil' if taught else 'fine-tune'}, CNN of width {width}",
        "steps": len(kit),
        "hand_ms_a_step": 1e3 * statistics.median(hand),
        "kit_ms_a_step": 1e3 * statistics.median(kit),
        "ratio": statistics.median(kit) / statistics.median(hand),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "once_ms": 1e3 * statistics.median(once for _, once in found),
    }


def table(found: list[dict], facts: dict) -> str:
    """The results as markdown."""
    lines = [f"Kit loop against a hand-written one: {', '.join(f'{key} {value}' for key, value in facts.items())}", ""]
    lines += ["| work | steps | by hand, ms a step | kit, ms a step | ratio of medians (rounds, sum over sum) | once a fit, ms |", "|---|---|---|---|---|---|"]
    for each in found:
        middle = f"{each['ratio']:.3f} ({each['ratio_low']:.3f} - {each['ratio_high']:.3f})"
        lines.append(f"| {each['work']} | {each['steps']} | {each['hand_ms_a_step']:.2f} | {each['kit_ms_a_step']:.2f} | {middle} | {each['once_ms']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    facts = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.processor() or platform.machine(), "threads": asked.threads, "torch": torch.__version__}
    facts |= {"seed": SEED, "batch": BATCH, "n": asked.rounds}
    found = [compare(width, items, taught, asked.rounds) for width, items, taught in ((8, 3200, False), (16, 3200, False), (8, 3200, True))]
    text = table(found, facts)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training_loop.json").write_text(json.dumps({"facts": facts, "results": found}, indent=1) + "\n")
    (RESULTS / "training_loop.md").write_text(text)


if __name__ == "__main__":
    main()

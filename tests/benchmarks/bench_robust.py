"""Accuracy under attack on Fashion-MNIST: ARD and RSLAD against plain distillation and against labels alone, from a robust teacher.

    KDKIT_DATA=... python -m tests.benchmarks.bench_robust [--seeds 3] [--train 6000] [--test 1000]

Normalised images; epsilon is 0.1 of the range of a pixel (the usual one for this data). Attacks in training PGD-7 with steps of 0.025, measured under PGD-20
with steps of 0.0125 from a random start. The teacher, a wider CNN, is trained here adversarially (Madry et al., 2018): on inputs moved
by PGD-7 against itself, on the same images. All students have the same images, epochs, optimizer and initial weights of their seed.
Expected: ARD and RSLAD far above plain distillation under attack, at some cost on clean inputs, as in Zi et al., 2021.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdkit.data import Data
from kdkit.models.evaluation import frozen
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit.training import fit
from kdkit.training.stage import TrainStage
from kdkit_distill.response.soft import Soft
from kdkit_distill.scheme.adversarial import Adversarial
from kdkit_distill.scheme.attack import Threat, pgd, robust_accuracy
from kdkit_tune.finetune import Finetune
from tests.benchmarks.real_data import fashion
from tests.benchmarks.timing import keep
from tests.fixtures.data_folder import absent

EPSILON, STEP, STEPS, BATCH = 0.1, 0.025, 7, 100
MEAN, STD = (0.2860,), (0.3530,)
THREAT = Threat(EPSILON, STEP, mean=MEAN, std=STD)
STRICT = replace(THREAT, step=STEP / 2)
TEACHER, STUDENT = 24, 6
EPOCHS = {"teacher": 12, "student": 12}


def cnn(width: int, seed: int) -> nn.Module:
    """Two strided convolutions with batch norm, one hidden layer."""
    torch.manual_seed(seed)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(*block(1, width), *block(width, 2 * width), nn.Flatten(), nn.Linear(98 * width, 8 * width), nn.ReLU(), nn.Linear(8 * width, 10))


def adversarially_trained(model: nn.Module, data: Data, epochs: int) -> nn.Module:
    """Madry's training: the label loss on inputs moved against the model as it is."""
    steps = epochs * sum(1 for _ in data.batches(batch_size=BATCH))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in _epochs(data, epochs):

        def loss(x: Tensor, y: Tensor = batch.labels) -> Tensor:
            return nn.functional.cross_entropy(model(x), y, reduction="none")

        with frozen(model):
            moved = pgd(loss, batch.args[0], THREAT, STEPS)
        model.train()
        optimizer.zero_grad()
        loss(moved).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _epochs(data: Data, epochs: int) -> Iterator:
    for epoch in range(epochs):
        yield from data.batches(shuffle=True, seed=epoch, batch_size=BATCH)


def measured(model: nn.Module, test: Data) -> tuple[float, float]:
    """Accuracy in percent, clean and under PGD-20."""
    with frozen(model):
        reported = robust_accuracy(lambda batch: batch.call(model), test, STRICT)
    return 100 * reported["clean"], 100 * reported["robust"]


def stages() -> dict[str, TrainStage]:
    """What is compared, each with the same budget of epochs."""
    options: dict = {"epochs": EPOCHS["student"], "learning_rate": 3e-3, "batch_size": BATCH}
    attack: dict = options | {"epsilon": EPSILON, "attack_step": STEP, "attack_steps": STEPS, "mean": MEAN, "std": STD, "measure": 0}
    return {
        "labels alone": Finetune(**options),
        "soft, T 4": Soft(temperature=4.0, **options),
        "adversarial, ard": Adversarial(objective="ard", **attack),
        "adversarial, rslad": Adversarial(objective="rslad", **attack),
    }


def main(seeds: int, items: int, tested: int) -> None:
    """Train, measure, print, keep."""
    if reason := absent("fashion-train-images-idx3-ubyte.gz", "fashion-t10k-images-idx3-ubyte.gz"):
        print(f"robust: skipped, {reason}")
        return
    torch.set_num_threads(1)
    data, test = adopt_data(fashion("train", items), BATCH), adopt_data(fashion("t10k", tested), 250)
    torch.manual_seed(0)
    teacher = adversarially_trained(cnn(TEACHER, 100), data, EPOCHS["teacher"])
    clean, robust = measured(teacher, test)
    rows = [["teacher, adversarially trained", f"{clean:.1f}", f"{robust:.1f}", "", "", ""]]
    print(rows[0], flush=True)
    found: dict[str, list[tuple[float, float]]] = {}
    for name, stage in stages().items():
        began = time.process_time()
        for seed in range(seeds):
            run = Context(Classification(), seed=seed, objects={"train": data, "teacher": teacher})
            found.setdefault(name, []).append(measured(fit(cnn(STUDENT, seed), [stage], run), test))
        seconds = (time.process_time() - began) / seeds
        gains = [mine[1] - plain[1] for mine, plain in zip(found[name], found.get("soft, T 4", []), strict=False)]
        gain = f"{statistics.mean(gains):+.1f} ± {_spread(gains):.1f}" if gains and name != "soft, T 4" else ""
        reported = [f"{statistics.mean(values):.1f} ± {_spread(values):.1f}" for values in zip(*found[name], strict=True)]
        rows.append([name, *reported, gain, f"{sum(gain > 0 for gain in gains)}/{seeds}" if gain else "", f"{seconds:.0f}"])
        print(rows[-1], flush=True)
    head = ["student", "clean, %", f"under PGD-20, epsilon {EPSILON:g}, %", "paired gain over soft under attack", "wins", "CPU s"]
    facts = {
        "data": f"Fashion-MNIST, {items} train, {tested} test",
        "seeds": f"0-{seeds - 1}",
        "epochs": EPOCHS["student"],
        "teacher": f"width {TEACHER}, Madry PGD-{STEPS}",
    }
    keep("robust", facts | {"student": f"width {STUDENT}"}, head, rows)


def _spread(values: list[float] | tuple[float, ...]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=1000)
    given = parser.parse_args()
    main(given.seeds, given.train, given.test)

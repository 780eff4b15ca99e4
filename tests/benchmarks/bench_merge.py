"""Benchmark 3: a teacher of cats and dogs and a teacher of fruits make one student of five classes, without a label.

    python -m tests.benchmarks.bench_merge [--seeds 3]

Cats and dogs are CIFAR-10's, fruits are Fruits-360's (apple, cherry, tomato; the test has other varieties). Figure: accuracy over the union,
the mean of the two test sets' own, since they differ in size. The last row is the same student with all the labels.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor, nn

from kdkit import Session
from tests.benchmarks.real_data import cifar, cifar_jpeg, fruits
from tests.benchmarks.timing import keep
from tests.fixtures.data_folder import absent

STUDY = "--epochs 5 --batch-size 64 --learning-rate 0.003"
WAYS = ("gated --origin origin", "own-set --origin origin", "concat")


def net(width: int, classes: int, seed: int) -> nn.Module:
    """Three convolutions on 32 x 32 images."""
    torch.manual_seed(seed)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*block(3, width), *block(width, 2 * width), *block(2 * width, 2 * width), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, classes))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images that are classed right, in per cent."""
    with torch.no_grad():
        return 100 * (model.eval()(x).argmax(1) == y).float().mean().item()


def main(seeds: int) -> None:
    if missing := absent("fruits32.npz", "cifar10_jpeg60k.npz"):
        print(f"merge: skipped, {missing}")
        return
    torch.set_num_threads(1)
    pets, pet_classes = cifar_jpeg(4000, classes=(3, 5))
    held, fruit = cifar(), fruits()
    shown = (held["test_y"] == 3) | (held["test_y"] == 5)
    tests = ((held["test_x"][shown], (held["test_y"][shown] == 5).long()), (fruit["test_x"], fruit["test_y"] + 2))
    sets = ((pets, (pet_classes == 5).long()), (fruit["train_x"], fruit["train_y"]))
    teachers = [
        Session(net(32, classes, 10 + at), train=data, measures=()).run(f"tune finetune {STUDY}").model
        for at, (data, classes) in enumerate(zip(sets, (2, 3), strict=True))
    ]
    alone = [accuracy(teachers[0], *tests[0]), accuracy(teachers[1], tests[1][0], tests[1][1] - 2)]
    images = torch.cat([sets[0][0], sets[1][0]])
    origin = torch.cat([torch.zeros(len(sets[0][0])), torch.ones(len(sets[1][0]))]).long()
    labels = torch.cat([sets[0][1], sets[1][1] + 2])

    def union(model: nn.Module) -> tuple[float, float]:
        return accuracy(model, *tests[0]), accuracy(model, *tests[1])

    rows = []
    for way in WAYS:
        found = []
        for seed in range(seeds):
            session = Session(net(16, 5, seed), train=images, task="classification", measures=(), seed=seed, pets=teachers[0], fruits=teachers[1], origin=origin)
            line = f'distill merge --teachers pets fruits --classes "cat dog|apple cherry tomato" --no-labels --objective {way} {STUDY}'
            found.append(union(session.run(line).model))
        rows.append([f"merge --objective {way}", *_reported(found)])
        print(rows[-1], flush=True)
    found = [union(Session(net(16, 5, seed), train=(images, labels), measures=(), seed=seed).run(f"tune finetune {STUDY}").model) for seed in range(seeds)]
    rows.append(["all labels, no teacher", *_reported(found)])
    facts = {"n": f"{seeds} seeds", "teachers at home": f"{alone[0]:.1f} and {alone[1]:.1f}", "study": STUDY}
    keep("merge", facts, ("way", "union, %", "cats and dogs, %", "fruits, %"), rows)


def _reported(found: list[tuple[float, float]]) -> list[str]:
    union = [sum(each) / 2 for each in found]
    spread = f" ± {statistics.stdev(union):.1f}" if len(union) > 1 else ""
    return [f"{statistics.mean(union):.1f}{spread}", *(f"{statistics.mean(each):.1f}" for each in zip(*found, strict=True))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    main(parser.parse_args().seeds)

"""Merging label sets in four settings: a teacher of the digits 0 to 4 and one of 5 to 9 make one student of ten, without a label.

    python -m tests.benchmarks.bench_merge_digits [--seeds 4]

Data: the 1797 images that ship with scikit-learn, 1300 to learn from. Does knowing where an item comes from help whatever the optimizer, the
temperature and the length of the training? Figure: accuracy on the other 497. The last row is the same student with all the labels.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor, nn

from kdkit import Session
from tests.benchmarks.timing import keep
from tests.fixtures.lessons import cnn, digit_images

SETTINGS = {
    "sgd, T 4, 15 epochs": "--optimizer sgd --learning-rate 0.05 --epochs 15 {}--temperature 4",
    "sgd, T 4, 40 epochs": "--optimizer sgd --learning-rate 0.05 --epochs 40 {}--temperature 4",
    "sgd, T 2, 15 epochs": "--optimizer sgd --learning-rate 0.05 --epochs 15 {}--temperature 2",
    "adam, T 2, 15 epochs": "--optimizer adam --learning-rate 0.003 --epochs 15 {}--temperature 2",
}
LEARNED = 1300
WAYS = {
    "all logits side by side": "--sources low high --objective concat",
    "gated": "--sources low high",
    "own-set": "--sources low high --objective own-set",
}


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images that are classed right."""
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).float().mean().item()


def reported(found: list[float]) -> str:
    """The mean, and the spread of several."""
    return f"{statistics.mean(found):.3f}" + (f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else "")


def main(seeds: int) -> None:
    """Train, print, write."""
    torch.set_num_threads(1)
    x, y = digit_images()
    train, test, low = (x[:LEARNED], y[:LEARNED]), (x[LEARNED:], y[LEARNED:]), y[:LEARNED] < 5
    parts = {"low": (train[0][low], train[1][low]), "high": (train[0][~low], train[1][~low] - 5)}
    teachers = {
        f"knows_{name}": Session(cnn(16, seed, 5), train=part, measures=()).run("tune finetune --epochs 20 --learning-rate 0.01 --batch-size 64").model
        for seed, (name, part) in enumerate(parts.items(), 10)
    }
    rows = []
    for way, options in WAYS.items():
        row = []
        for setting in SETTINGS.values():
            found = []
            for seed in range(seeds):
                session = Session(cnn(8, seed), example=x[:2], task="classification", measures=(), seed=seed, **teachers, low=parts["low"][0], high=parts["high"][0])
                line = f"distill merge --teachers knows_low knows_high {options} --no-labels --batch-size 64 {setting.format('')}"
                found.append(accuracy(session.run(line).model, *test))
            row.append(reported(found))
        rows.append([f"merge, {way}", *row])
        print(rows[-1], flush=True)
    row = []
    for setting in SETTINGS.values():
        line = f"tune finetune --batch-size 64 {setting.partition('{}')[0]}"
        row.append(reported([accuracy(Session(cnn(8, seed), train=train, measures=(), seed=seed).run(line).model, *test) for seed in range(seeds)]))
    rows.append(["all labels, no teacher", *row])
    at_home = " and ".join(
        f"{accuracy(model, test[0][mine], test[1][mine] - start):.3f}" for model, start, mine in zip(teachers.values(), (0, 5), (test[1] < 5, test[1] > 4), strict=True)
    )
    keep("merge_digits", {"n": f"{seeds} seeds, one pair of teachers", "teachers at home": at_home}, ("way", *SETTINGS), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=4)
    main(parser.parse_args().seeds)

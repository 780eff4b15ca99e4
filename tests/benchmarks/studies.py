"""Three small studies of classification: images of clothes, spoken digits, and photographs, each with a teacher, a student, and data held back twice.

Inputs are pooled to half their size, and nets and trainings are short, so that hundreds of runs take minutes and not days. Choices are
made on the validation data; the test data are for the report alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import Session
from tests.benchmarks.real_data import cifar_jpeg, fashion, spoken_digits

LOOP = "--steps 600 --batch-size 64 --learning-rate 0.01"
TEACHERS_LOOP = "--steps 1200 --batch-size 64 --learning-rate 0.005"
KEPT = Path(__file__).parents[2] / "build" / "benchmarks"
"""Where trained teachers are kept between runs; nothing in it belongs to the project."""

Pairs = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Study:
    """Data of one study.

    Attributes:
        whole: what the teacher is trained on; `few`, the student's, is part of it.
        validation: for choices, and `test` for the report.
        teacher: trained.
    """

    name: str
    whole: Pairs
    few: Pairs
    validation: Pairs
    test: Pairs
    teacher: nn.Module

    def student(self, seed: int) -> nn.Module:
        """An untrained student."""
        return Net(self.few[0].shape[1], 6, seed)

    def trained(self, line: str, seed: int) -> nn.Module:
        """What a line makes of a student."""
        named = {"train": self.few, "rest": self.whole[0], "teacher": self.teacher}
        return Session(self.student(seed), **named, measures=(), seed=seed).run(f"{line} {LOOP}").model


class Net(nn.Module):
    """Three stages of convolutions, pooled; (batch, channels, height, width) -> (batch, 10)."""

    def __init__(self, channels: int, width: int, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.stage1, self.stage2, self.stage3 = _stage(channels, width), _stage(width, 2 * width), _stage(2 * width, 4 * width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage3(self.stage2(self.stage1(x))).mean((2, 3)))


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def accuracy(model: nn.Module, data: Pairs) -> float:
    """Share of the items that are classed right, in per cent."""
    with torch.no_grad():
        return 100 * (model.eval()(data[0]).argmax(1) == data[1]).float().mean().item()


def _clothes() -> tuple[Pairs, Pairs, Pairs, Pairs]:
    x, y = fashion("train", 14_000)
    test = fashion("t10k")
    return (_half(x[:12_000]), y[:12_000]), (_half(x[:1000]), y[:1000]), (_half(x[12_000:]), y[12_000:]), (_half(test[0]), test[1])


def _digits() -> tuple[Pairs, Pairs, Pairs, Pairs]:
    x, y, held = spoken_digits()
    x = _half(x)
    rest = (~held).nonzero().flatten()
    order = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))]
    train, validation = order[:-600], order[-600:]
    return (x[train], y[train]), (x[train[:600]], y[train[:600]]), (x[validation], y[validation]), (x[held], y[held])


def _photographs() -> tuple[Pairs, Pairs, Pairs, Pairs]:
    x, y = cifar_jpeg(16_000)
    x = _half(x)
    return (x[:12_000], y[:12_000]), (x[:2000], y[:2000]), (x[12_000:14_000], y[12_000:14_000]), (x[14_000:], y[14_000:])


def _half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


STUDIES: dict[str, tuple[Callable[[], tuple[Pairs, Pairs, Pairs, Pairs]], tuple[str, ...]]] = {
    "fashion": (_clothes, ("fashion-train-images-idx3-ubyte.gz", "fashion-t10k-images-idx3-ubyte.gz")),
    "fsdd": (_digits, ("fsdd_8k.npz",)),
    "cifar": (_photographs, ("cifar10_jpeg60k.npz",)),
}
"""How the data of each study are made, and the files that it needs."""


def load(name: str) -> Study:
    """A study, with its teacher trained or read from an earlier run."""
    whole, few, validation, test = STUDIES[name][0]()
    net, kept = Net(whole[0].shape[1], 24, 100), KEPT / f"teacher-{name}.pt"
    if kept.exists():
        net.load_state_dict(torch.load(kept, weights_only=True))
    else:
        net = Session(net, train=whole, measures=(), seed=0).run(f"tune finetune {TEACHERS_LOOP}").model
        KEPT.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), kept)
    return Study(name, whole, few, validation, test, net.eval())

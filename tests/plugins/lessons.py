"""What tests of distillation share: nets and data, short trainings, and prints of models to compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdkit.context import Context
from kdkit.data import Batch, Data, adopt_data
from kdkit.tasks import Classification, Task
from kdkit.training import fit
from kdkit_distill.stage import DistillStage
from tests import zoo


def numbers(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normal float64 numbers."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * spread


def logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    """The like, as far apart as a net's answers."""
    return numbers(*shape, seed=seed, spread=spread)


def net(seed: int, width: int = 16, classes: int = 3, dropout: float = 0.0) -> nn.Module:
    """A net for `points`, with batch norm."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, classes))


def points(items: int = 64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Six numbers an item, of which the largest of the first three is its class."""
    x = torch.randn(items, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def context(data: Any = None, teacher: nn.Module | None = None, task: Task | None = None, **objects: Any) -> Context:
    """A run's context with these data to train on, `points` when not said."""
    train = data if isinstance(data, Data) else adopt_data(points() if data is None else data, 16)
    return Context(task or Classification(), objects={"train": train, "teacher": teacher, **objects}, original=teacher or net(50))


def of_zoo(name: str, items: int = 32) -> Data:
    """Labelled data for a net of the zoo, whose items have numbers."""
    found = zoo.batch(name, items)
    rows = [{**{key: item[row] for key, item in found.kwargs.items()}, "labels": found.labels[row]} for row in range(items)]
    return adopt_data((found.args[0], found.labels) if found.args else rows, 16)


def taught(stage: DistillStage, student: nn.Module, run: Context) -> list[dict[str, float]]:
    """Train the student, and return the figures that the loop told, first to last."""
    seen: list[dict[str, float]] = []
    run.observe = lambda progress: seen.append(dict(progress.figures))
    fit(student, [stage], run)
    return seen


def first_loss(stage: DistillStage, student: nn.Module, run: Context) -> dict[str, float]:
    """The figures of a training's first step."""
    return taught(stage, student, run)[0]


def weights(model: nn.Module) -> Tensor:
    """All of a model's numbers in one row, float64."""
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def fingerprint(model: nn.Module) -> tuple:
    """Weights and buffers to the bit, modes, flags, gradients, hooks."""
    state = hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in model.state_dict().values())).hexdigest()
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    flags = [(weight.requires_grad, weight.grad) for weight in model.parameters()]
    return state, [module.training for module in model.modules()], flags, hooks


class InOrder(Data):
    """Batches in a fixed order."""

    def batches(self, shuffle: bool = False, seed: int | None = None, batch_size: int | None = None) -> Iterator[Batch]:
        return super().batches(False, 0, None)


def sentences(padding: int = 0, cuts: tuple[int, ...] = (), labels: bool = True) -> Data:
    """Eight sentences of several lengths for tiny_bert, padded further, in batches cut there."""
    lengths, random = torch.tensor([7, 3, 5, 2, 6, 7, 2, 4]), torch.Generator().manual_seed(0)
    tokens = torch.randint(3, zoo.VOCABULARY, (8, 7), generator=random)
    mask = torch.arange(7 + padding)[None] < lengths[:, None]
    inputs = {"input_ids": nn.functional.pad(tokens, (0, padding), value=9) * mask, "attention_mask": mask.long()}
    whole = Batch((), inputs, torch.tensor([0, 1] * 4) if labels else None)
    return InOrder(lambda: [whole[start:stop] for start, stop in zip((0, *cuts), (*cuts, 8), strict=True)], "sentences", 8)


def bert(seed: int) -> nn.Module:
    """tiny_bert in float64 with weights of its own and without dropout."""
    model = zoo.tiny_bert().double()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight += 0.1 * numbers(*weight.shape, seed=1000 * seed + number)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


class Speller(nn.Module):
    """A causal language model of one layer, in float64, with a head of any width."""

    def __init__(self, seed: int, head: int = 11):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(16, 8).double(), nn.Linear(8, head).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.embed(input_ids).cumsum(1))}


def words(padding: int = 0, cuts: tuple[int, ...] = ()) -> Data:
    """Eight sentences of several lengths for `Speller`, padded further, in batches cut there."""
    tokens, lengths = torch.randint(1, 11, (8, 7), generator=torch.Generator().manual_seed(0)), torch.tensor([7, 3, 5, 2, 6, 7, 2, 4])
    mask = torch.arange(7 + padding)[None] < lengths[:, None]
    whole = Batch((), {"input_ids": nn.functional.pad(tokens, (0, padding), value=9) * mask, "attention_mask": mask.long()})
    return InOrder(lambda: [whole[start:stop] for start, stop in zip((0, *cuts), (*cuts, 8), strict=True)], "words", 8)


def digit_images() -> tuple[Tensor, Tensor]:
    """The 1797 images of digits that ship with scikit-learn, (items, 1, 8, 8) from 0 to 1, in a fixed random order, and their labels."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.images, dtype=torch.float32)[order, None] / 16, torch.tensor(found.target)[order]


def cnn(width: int, seed: int, classes: int = 10) -> nn.Module:
    """A small net for `digit_images`."""
    torch.manual_seed(seed)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*block(1, width), *block(width, 2 * width), nn.Flatten(), nn.Linear(8 * width, classes))


class Tagger(nn.Module):
    """A class for each token: one linear over an embedding, in float64."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(20, 8).double(), nn.Linear(8, 4).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids))


class CountingTeacher(zoo.Mlp):
    """Counts how often it is asked."""

    def __init__(self, seed: int = 3):
        torch.manual_seed(seed)
        super().__init__()
        self._asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self._asked += 1
        return super().forward(x)

"""Contrastive representation distillation: the student's feature of an item identifies the teacher's among thousands of others.

Tian, Krishnan and Isola, "Contrastive Representation Distillation", 2020 (arXiv:1910.10699).

Both features are embedded, f -> W f / ‖W f‖, and two memory banks keep a moving average for each item. An anchor's own
item in the other net's bank is the positive, K random others are the negatives; h is the probability that a pair is a positive:

    h = e^{s / .07} / (e^{s / .07} + Z K / N), loss = -log h(positive) - Σ log (1 - h(negative)), for both nets as the anchor.

The first batch fixes Z. With labels, negatives are of other classes (an item counts as its own class until the training
has seen it); without labels, negatives are any other items.

Pitfalls: items need numbers that stay the same in all epochs; lists, arrays and datasets have them, a stream has none. An item's
loss depends on the content of the banks, so batches can't be accumulated, and several processes would each keep their own
banks. The banks use 2 x items x 128 x 4 bytes, and a step compares its batch with the whole bank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdkit import KdError, Step, Term, param
from kdkit.guards import without_gradients
from kdkit.tasks import at_least_float32
from kdkit_distill.feature.stage import LayerStage, term_name
from kdkit_distill.layers.pooling import vectors
from kdkit_distill.layers.projections import width_of
from kdkit_distill.layers.stage_detection import penultimate
from kdkit_distill.signals import Pair, SignalPair
from kdkit_distill.weighting import Weight, weighted

if TYPE_CHECKING:
    from kdkit import Context

EMBEDDED = 128
MOST_NEGATIVES = 16384


def contrast(similarity: Tensor, log_z: Tensor, items: int, temperature: float = 0.07) -> Tensor:
    """-log h(positive) - Σ over negatives of log(1 - h), with h = p / (p + K / N), p = e^{similarity / temperature} / Z.

    Args:
        similarity: (batch, 1 + K) cosines, the positive first; computed in float32 at least.
        log_z: log of the constant Z that makes p add up to 1 over all items, a scalar.
        items: N, how many items there are.
        temperature: above 0.

    Returns:
        (batch,), at least 0.

    >>> contrast(torch.zeros(1, 2), torch.tensor(0.0), 1).exp().round(decimals=4)
    tensor([4.])
    """
    similarity = at_least_float32(similarity)
    odds = similarity / temperature - log_z - math.log((similarity.shape[1] - 1) / items)
    return -F.logsigmoid(odds[:, 0]) - F.logsigmoid(-odds[:, 1:]).sum(1)


def other_items(numbers: Tensor, classes: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Items of other classes, drawn uniformly and with replacement: (batch, draws) int64.

    Args:
        numbers: (batch,) int64, the items to draw negatives for.
        classes: (items,) int64, of all items; below 0 if unknown: such an item is its own class.
        draws: how many for each.
        generator: on the device of `numbers`.

    Where all items are of one class, any other item is drawn.

    >>> classes = torch.tensor([0, 0, 1, 1])
    >>> set(other_items(torch.tensor([0]), classes, 50, torch.Generator().manual_seed(0)).flatten().tolist())
    {2, 3}
    """
    items = len(classes)
    own = torch.arange(items, device=classes.device)
    keys = torch.where(classes < 0, own + classes.max().clamp_min(0) + 1, classes)
    found, order = keys.sort(stable=True)
    mine = keys[numbers].contiguous()
    first, after = torch.searchsorted(found, mine), torch.searchsorted(found, mine, right=True)
    alone = (after - first == items)[:, None]
    drawn = torch.randint(2**62, (len(numbers), draws), generator=generator, device=numbers.device)
    # each class's items are contiguous: draw from all positions except those of the own class, and skip them
    place = drawn % (items - (after - first)).clamp_min(1)[:, None]
    place = place + torch.where(place >= first[:, None], (after - first)[:, None], 0)
    any_other = drawn % max(items - 1, 1)
    any_other = any_other + (any_other >= numbers[:, None]).long()
    return torch.where(alone, any_other, order[place.clamp_max(items - 1)])


class Bank(nn.Module):
    """The embeddings of all items by both nets, and the embedding layers.

    Args:
        student, teacher: sizes of the features.
        items: how many there are.
        seed: of the negatives.
    """

    classes: Tensor
    log_z: Tensor
    of_student: Tensor
    of_teacher: Tensor

    def __init__(self, student: int, teacher: int, items: int, seed: int = 0):
        super().__init__()
        self.seed = seed
        self.embed_student, self.embed_teacher = nn.Linear(student, EMBEDDED), nn.Linear(teacher, EMBEDDED)
        bound = 1 / math.sqrt(EMBEDDED / 3)
        self.register_buffer("of_student", torch.empty(items, EMBEDDED).uniform_(-bound, bound))
        self.register_buffer("of_teacher", torch.empty(items, EMBEDDED).uniform_(-bound, bound))
        self.register_buffer("classes", torch.full((items,), -1))
        self.register_buffer("log_z", torch.full((2,), torch.nan))

    def embedded(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both features (batch, size) as vectors (batch, 128) of length 1."""
        one = self.embed_student(student.to(self.embed_student.weight.dtype))
        two = self.embed_teacher(teacher.to(self.embed_teacher.weight.dtype))
        return F.normalize(at_least_float32(one), dim=-1), F.normalize(at_least_float32(two), dim=-1)

    def compare(self, one: Tensor, two: Tensor, numbers: Tensor, others: Tensor, temperature: float) -> Tensor:
        """The loss of each item, (batch,): the student among the teacher's items, and the teacher among the student's.

        Args:
            one, two: embedded student and teacher.
            numbers: (batch,) of the items.
            others: (batch, K) of the negatives.
            temperature: above 0.
        """
        items, chosen = len(self.classes), torch.cat([numbers[:, None], others], 1)
        # a cosine that autocast rounds to bfloat16 is off by .05 once it is divided by the temperature
        with torch.autocast(one.device.type, enabled=False):
            similarity = [anchor @ bank.to(anchor.dtype).T for anchor, bank in ((one, self.of_teacher), (two, self.of_student))]
        pairs = [each.gather(1, chosen) for each in similarity]
        seen = torch.stack([(pair.detach() / temperature).logsumexp((0, 1)) - math.log(pair.numel() / items) for pair in pairs])
        self.log_z.copy_(torch.where(self.log_z.isnan(), seen.to(self.log_z.dtype), self.log_z))
        log_z = self.log_z.clone()
        return contrast(pairs[0], log_z[0], items, temperature) + contrast(pairs[1], log_z[1], items, temperature)

    @without_gradients
    def follow(self, one: Tensor, two: Tensor, numbers: Tensor, momentum: float) -> None:
        """Update the items' entries in the banks towards the new embeddings."""
        # new tensors, since the backward pass still needs the old ones
        self.of_student, self.of_teacher = (
            bank.index_copy(0, numbers, F.normalize(momentum * bank[numbers] + (1 - momentum) * seen.to(bank.dtype), dim=-1))
            for bank, seen in ((self.of_student, one), (self.of_teacher, two))
        )


class Contrast(LayerStage):
    """Identify the teacher's feature of each item among those of thousands of others (CRD).

    Loss per item: (1 - alpha) · label loss + alpha · weight · [-log h(own) - Σ log(1 - h(other))], from both sides, with
    h = e^{cos / .07} / (e^{cos / .07} + Z K / N) over banks of all N items' embeddings. The layers before the heads are compared.
    """

    id: ClassVar[str] = "distill.contrast"
    known_as: ClassVar[tuple[str, ...]] = ("CRD",)
    relational: ClassVar[bool] = True

    weight: Weight = weighted(0.8, pull=0.8, search=(0.1, 10))
    negatives: int | None = param(None, "items that each item is contrasted with, K; default: 16384, or all others if there are fewer", ge=1)
    temperature: float = param(0.07, "of the similarities", gt=0, advanced=True)
    momentum: float = param(0.5, "share of the old value in an updated entry of a bank", ge=0, lt=1, advanced=True)

    def suggested_pairs(self, student: nn.Module, teacher: nn.Module | None, context: Context) -> tuple[Pair, ...]:
        if teacher is None or self.count is not None:
            return super().suggested_pairs(student, teacher, context)
        return (Pair(penultimate(student, context.example), penultimate(teacher, context.example)),)

    def modules(self, features: list[tuple[Tensor, Tensor]], context: Context) -> nn.ModuleDict:
        data = context.data(self.data)
        if data.example().numbers is None or data.items is None:
            raise KdError(
                f"{self.title} keeps an entry for each item, but the items of {data.reason} have no numbers",
                "pass a data set or arrays instead of a stream, so that items have numbers",
                "or use a technique without a memory: distill similarity, distill relations",
            )
        if data.items < 2:
            raise KdError(f"{self.title} contrasts items, but {data.reason} has {data.items}", "pass more data")
        made = nn.ModuleDict()
        for number, (student, teacher) in enumerate(features):
            made[str(number)] = Bank(width_of(student.shape), width_of(teacher.shape), data.items, context.seed).to(student.device, at_least_float32(student).dtype)
        return made

    def terms(self, seen: SignalPair) -> Iterable[Term]:
        numbers = self._numbers(seen.step)
        for pair, (key, student, teacher) in zip(seen.pairs, seen.features(), strict=True):
            bank = seen.modules[key]
            assert isinstance(bank, Bank)
            self._learn_classes(bank, seen.step, numbers)
            # seeded by the step, so that a resumed training draws the same negatives
            generator = torch.Generator(numbers.device).manual_seed(bank.seed * 1_000_003 + seen.step.index)
            others = other_items(numbers, bank.classes, self.negatives or min(MOST_NEGATIVES, len(bank.classes) - 1), generator)
            one, two = bank.embedded(vectors(student, seen.step.batch), vectors(teacher, seen.step.batch))
            values = bank.compare(one, two, numbers, others, self.temperature)
            bank.follow(one, two, numbers, self.momentum)
            yield Term(term_name("contrast", pair, seen), values)

    def _numbers(self, step: Step) -> Tensor:
        if step.batch.numbers is None:
            raise KdError(f"{self.title} keeps an entry for each item, but the items of a batch have no numbers", "pass a data set or arrays instead of a stream")
        return step.batch.numbers

    @staticmethod
    def _learn_classes(bank: Bank, step: Step, numbers: Tensor) -> None:
        labels = step.batch.labels
        if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point():
            bank.classes[numbers] = labels

"""Layers: remove whole blocks, so that the model becomes shallower and faster also at batch 1."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import ClassVar, Literal

from torch import nn

from kdkit import Batch, Context, Forecast, KdError, Needs, Stage, Trait, param
from kdkit.display import Table, number
from kdkit.models import device_of, evaluating, select_layers
from kdkit_prune.blocks import find_blocks, passing_on, remove_blocks, watch_calls, without_blocks
from kdkit_prune.damage import Damage, some_items
from kdkit_prune.depth_config import write_depth
from kdkit_prune.latency import time_share
from kdkit_prune.norm_statistics import norms_with_statistics, reestimate
from kdkit_prune.reinitialization import reinitialize
from kdkit_prune.selection import smallest


class Layers(Stage):
    """Remove whole blocks: residual blocks, or layers of a transformer, so that the model becomes shallower.

    greedy: round by round the block whose removal moves the outputs least (KL to those of the whole model for classes, squared distance
    otherwise), with BatchNorm statistics estimated again. influence: the blocks whose outputs are most like their inputs, by cosine (ShortGPT,
    Men et al., 2024, arXiv:2403.03853). loss: the blocks without which the loss on labelled data grows least.

    Depth, not width, bounds latency at batch 1. `distill soft` or `tune finetune` afterwards brings most of the accuracy back.
    """

    id: ClassVar[str] = "prune.layers"
    known_as: ClassVar[tuple[str, ...]] = ("depth pruning", "layer dropping", "ShortGPT", "block pruning")
    needs: ClassVar[Needs] = Needs(example=True)
    requires: ClassVar[Iterable[str]] = {Trait.FLOAT_WEIGHTS, Trait.FREE_STRUCTURE}
    forbids: ClassVar[Iterable[str]] = {Trait.ADAPTERS_ATTACHED, Trait.FAKE_QUANT, Trait.ONNX}

    count: int | None = param(None, "how many blocks to remove; default: --ratio of them", ge=1, main=True)
    ratio: float = param(0.25, "share of the removable blocks to remove, rounded up; one of each row stays", gt=0, lt=1, share="removed", search=(0.1, 0.6), main=True)
    latency: float | None = param(
        None, "instead of --count: the largest share of the time of one item to keep, measured in torch on this machine", gt=0, lt=1, share="kept"
    )
    method: Literal["greedy", "influence", "loss"] = param("greedy", "how to choose the blocks; loss uses labelled training data, the others calibration data")
    blocks: tuple[str, ...] = param((), "patterns of the blocks to remove, instead of --count and --method", names="layers")
    skip: tuple[str, ...] = param((), "patterns of the blocks to keep", names="layers")
    items: int = param(256, "items of data on which blocks are compared", ge=1)
    statistics: int = param(8, "batches on which BatchNorm statistics are estimated again at the end; 0 leaves them, also during the search", ge=0)
    reinit: bool = param(False, "give all weights new random values afterwards, to compare the pruned structure trained from scratch (Liu et al., 2019)", advanced=True)

    def required_inputs(self) -> Needs:
        """Data to choose the blocks on, unless they are named."""
        chosen = bool(self.blocks)
        return self.needs | Needs(
            calibration=not chosen and self.method != "loss", train=not chosen and self.method == "loss", labels=not chosen and self.method == "loss"
        )

    def optional_inputs(self) -> Needs:
        """Data on which BatchNorm statistics are estimated again."""
        return Needs(calibration=self.statistics > 0)

    def check(self, model: nn.Module, context: Context) -> Iterable[str]:
        """Options that exclude each other, and blocks that don't exist."""
        select_layers(model, (*self.blocks, *self.skip))
        if len(given := [name for name in ("blocks", "count", "latency") if getattr(self, name)]) > 1:
            yield f"prune layers: --{' and --'.join(given)} each state how many blocks go; give one of them"

    def forecast(self, model: nn.Module, context: Context) -> Forecast:
        """As many blocks, the last of each row in turn, since the choice needs data."""
        found = self._removable(model, context)
        remove_blocks(model, self._named(model, found) if self.blocks else _last_in_turn(found, self._count(model, found, context)))
        return Forecast(model)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Remove the blocks.

        Raises:
            KdError: no block can be removed, or not so many.
        """
        found = self._removable(model, context)
        chosen = self._named(model, found) if self.blocks else self._chosen(model, found, context)
        renamed = remove_blocks(model, chosen)
        for old, new in renamed.items():
            context.note_rename(old, new)
        if config := write_depth(model, chosen, context.example[:2].to(device_of(model))):
            context.note(config)
        if self.reinit:
            reinitialize(model, context.seed)
        elif self.statistics and context.has_calibration and any(norms_with_statistics(model)):
            reestimate(model, context.calibration(self.statistics))
        context.note(f"removed {len(chosen)} of {len(found)} blocks: {', '.join(chosen)}")
        return model

    def _removable(self, model: nn.Module, context: Context) -> list[str]:
        found, left = find_blocks(model, context.example[:2].to(device_of(model)))
        for name, reason in left.items():
            context.note(f"left alone: {name}: {reason}")
        spared = select_layers(model, self.skip)
        kept = [name for name in found if name not in spared]
        if not kept:
            raise KdError(
                f"prune layers: {type(model).__name__} has no block that can be removed",
                "a block is a child of an nn.Sequential or nn.ModuleList whose outputs have the shape of its inputs",
                *(f"{name}: {reason}" for name, reason in list(left.items())[:4]),
            )
        return kept

    def _named(self, model: nn.Module, found: Sequence[str]) -> list[str]:
        named = select_layers(model, self.blocks)
        chosen = [name for name in found if name in named]
        if not chosen:
            raise KdError(f"prune layers: none of {' '.join(self.blocks)} can be removed", f"removable: {', '.join(found)}")
        return chosen

    def _count(self, model: nn.Module, found: Sequence[str], context: Context) -> int:
        most = len(found) - len({_row(name) for name in found})
        if not most or (self.count is not None and self.count > most):
            raise KdError(f"prune layers: {self.count or 1} of {len(found)} blocks can't be removed, because one of each row stays", f"the most is --count {most}")
        if self.latency is not None:
            return self._count_for_latency(model, found, most, context)
        return min(ceil(len(found) * self.ratio) if self.count is None else self.count, most)

    def _count_for_latency(self, model: nn.Module, found: Sequence[str], most: int, context: Context) -> int:
        """The fewest blocks that meet --latency; blocks of a row take about as long as each other, so it does not matter here which of them go."""
        item, target = context.example[:1].to(device_of(model)), self.latency or 1.0

        def share(count: int) -> float:
            context.progress(0, 1, f"timing without {count} blocks")
            return time_share(without_blocks(model, _last_in_turn(found, count)), model, item)

        count = smallest(range(1, most + 1), lambda count: share(int(count)) <= target)
        if count is None:
            raise KdError(
                f"prune layers: --latency {target:g} can't be reached; without {most} blocks it is {share(most):.2f}", "prune channels makes the blocks thinner"
            )
        context.note(f"latency: {share(int(count)):.2f} of before for one item, in torch on this machine (--latency {target:g})")
        return int(count)

    def _chosen(self, model: nn.Module, found: Sequence[str], context: Context) -> list[str]:
        count = self._count(model, found, context)
        data = some_items(context.data("train").batches() if self.method == "loss" else context.calibration(), self.items, model)
        if self.method == "influence":
            scores = influence(model, found, data)
            return self._lowest(scores, count, "1 - cosine", context)
        damage = Damage(model, data, context.task, statistics=self.statistics > 0)

        def without(names: list[str], measure: Callable[[nn.Module], float]) -> float:
            with passing_on(model, names):
                return measure(model)

        if self.method == "loss":
            return self._lowest({name: without([name], damage.loss_of) for name in _ticked(found, context)}, count, "loss", context)
        curve = greedy(found, count, lambda names: without(names, damage.of), lambda done, text: context.progress(done, count, text))
        rows = [[index + 1, name, number(value)] for index, (name, value) in enumerate(curve)]
        context.attach(Table(["removed", "block", "divergence"], rows, "each round removes the block that moves the outputs least"))
        if (stop := knee([value for _, value in curve])) < count:
            context.note(f"the divergence grows fastest after {stop} {'blocks' if stop > 1 else 'block'}: --count {stop}")
        return [name for name, _ in curve]

    def _lowest(self, scores: dict[str, float], count: int, figure: str, context: Context) -> list[str]:
        order = sorted(scores, key=scores.__getitem__)
        chosen = within_rows(order, list(scores), count)
        rows = [[name, number(score), "removed" if name in chosen else ""] for name, score in scores.items()]
        context.attach(Table(["block", figure, ""], rows, "the blocks with the lowest figure go"))
        return chosen


def influence(model: nn.Module, blocks: Sequence[str], batches: Iterable[Batch]) -> dict[str, float]:
    """1 - the mean cosine of a block's inputs and outputs, for each token, or for each item of an image's features."""
    sums, counts = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0)
    for batch in batches:
        with watch_calls(model, blocks) as calls, evaluating(model):
            batch.call(model)
        for name, call in calls.items():
            for given, made in zip(call.inputs, call.outputs, strict=True):
                vectors = (given, made) if given.dim() == 3 else (given.flatten(1), made.flatten(1))
                alike = nn.functional.cosine_similarity(vectors[0].float(), vectors[1].float(), dim=-1)
                sums[name] += float((1 - alike).sum())
                counts[name] += alike.numel()
    return {name: sums[name] / max(counts[name], 1) for name in blocks}


def greedy(blocks: Sequence[str], count: int, damage: Callable[[list[str]], float], tick: Callable[[int, str], None]) -> list[tuple[str, float]]:
    """The blocks in the order of removal, with the damage after each round.

    A block that was dear in an earlier round is tried again only while its last figure could still be the lowest: the damage of a block
    hardly ever shrinks as others go (lazy greedy; Minoux, 1978).

    Args:
        damage: of removing these blocks together.
    """
    removed: list[tuple[str, float]] = []
    queue = [(0.0, index, -1) for index in range(len(blocks))]
    while len(removed) < count:
        allowed = set(range(len(blocks))) - {index for index in range(len(blocks)) if not _may_go(blocks[index], [name for name, _ in removed], blocks)}
        queue = [entry for entry in queue if entry[1] in allowed]
        heapq.heapify(queue)
        while queue[0][2] != len(removed):
            _, index, _ = heapq.heappop(queue)
            tick(len(removed), blocks[index])
            heapq.heappush(queue, (damage([*[name for name, _ in removed], blocks[index]]), index, len(removed)))
        value, index, _ = heapq.heappop(queue)
        removed.append((blocks[index], value))
    return removed


def within_rows(order: Sequence[str], blocks: Sequence[str], count: int) -> list[str]:
    """The first `count` blocks of an order, without the last one that is left in a row.

    >>> within_rows(["a.0", "a.1", "b.0", "b.1"], ["a.0", "a.1", "b.0", "b.1"], 2)
    ['a.0', 'b.0']
    """
    chosen: list[str] = []
    for name in order:
        if len(chosen) < count and _may_go(name, chosen, blocks):
            chosen.append(name)
    return chosen


def knee(curve: Sequence[float]) -> int:
    """How many blocks to remove before the curve of damage bends up: the point farthest below the line from the origin to its end.

    Satopää et al., "Finding a 'Kneedle' in a Haystack", 2011.

    >>> knee([0.01, 0.02, 0.03, 0.04, 0.5, 1.0])
    4
    """
    last = curve[-1] or 1.0
    below = [(index + 1) / len(curve) - value / last for index, value in enumerate(curve)]
    return below.index(max(below)) + 1


def _ticked(blocks: Sequence[str], context: Context) -> Iterable[str]:
    for done, name in enumerate(blocks):
        context.progress(done, len(blocks), name)
        yield name


def _last_in_turn(blocks: Sequence[str], count: int) -> list[str]:
    """The last blocks of each row, the longest rows first."""
    left, going = list(blocks), []
    for _ in range(count):
        rows = [_row(name) for name in left]
        longest = max(dict.fromkeys(rows), key=rows.count)
        going.append([name for name in left if _row(name) == longest][-1])
        left.remove(going[-1])
    return going


def _may_go(name: str, removed: Sequence[str], blocks: Sequence[str]) -> bool:
    """Whether a block is there, and not the only one left in its row."""
    return name not in removed and sum(_row(other) == _row(name) and other not in removed for other in blocks) > 1


def _row(name: str) -> str:
    return name.rpartition(".")[0]

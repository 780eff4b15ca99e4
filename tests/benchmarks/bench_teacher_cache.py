"""What a cached epoch costs: ResNet-56 teaches ResNet-20 on CIFAR-10 images, live, from a cache, and labels alone, in turn.

    python -m tests.benchmarks.bench_teacher_cache [--rounds 7] [--items 1280]

Goals: a cached epoch <= 0.58 of an uncached one, and <= 1.05 of one without a teacher. Each round trains a fresh student for one
epoch in each of the three ways, one after another; counted is the CPU time from one step to the next, loading included. What a fit
costs once (recognising the teacher, opening the file, looking at the first step's gradients) stands apart, and so does filling the
file. Nothing here asserts a time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from kdkit.data import Data
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Classification
from kdkit.training import fit
from kdkit.training.stage import TrainStage
from kdkit_distill.response.soft import Soft
from kdkit_distill.teachers.cache.source import Cached
from kdkit_distill.teachers.sources import ModelSource
from kdkit_tune.finetune import Finetune
from tests.benchmarks.real_data import cifar, cifar_resnet, fresh_resnet
from tests.benchmarks.timing import keep
from tests.fixtures.data_folder import absent

BATCH, SEED = 64, 0
HEAD = ["step, CPU ms", "cached", "the other", "ratio, median of rounds", "lowest - highest", "goal", "once a fit, cached, ms", "once a fit, the other, ms"]


def timed(stage: TrainStage, data: Data, teacher: torch.nn.Module) -> tuple[float, float]:
    """CPU milliseconds of a step, the first left out, and of all that a training costs once."""
    ended: list[float] = []
    context = Context(Classification(), seed=SEED, objects={"train": data, "teacher": teacher}, observe=lambda progress: ended.append(time.process_time()))
    student = fresh_resnet(20, SEED)
    began = time.process_time()
    fit(student, [stage], context)
    whole = time.process_time() - began
    steps = [after - before for before, after in pairwise(ended) if after - before > 1e-3]
    return 1e3 * statistics.median(steps), 1e3 * (whole - statistics.median(steps) * (len(steps) + 1))


def lookups(data: Data, teacher: torch.nn.Module, path: str) -> tuple[float, float]:
    """CPU milliseconds to find and read the answers to a batch: by content, and by numbers once these are known."""
    context = Context(Classification(), objects={"train": data, "teacher": teacher})
    source, taken = Cached(ModelSource("teacher", context), path, data, context), []
    source.open(torch.device("cpu"))
    for seed in range(4):
        batches = list(data.batches(shuffle=True, seed=seed))
        began = time.process_time()
        for batch in batches:
            source.signal(batch)
        taken.append((time.process_time() - began) / len(batches) * 1e3)
    source.close()
    return taken[0], statistics.median(taken[1:])


def main(rounds: int, items: int) -> None:
    if missing := absent("cifar_resnet56.safetensors", "cifar_resnet.py", "cifar10_lossless5k.npz"):
        print(f"teacher_cache: skipped, {missing}")
        return
    torch.set_num_threads(1)
    images, teacher = cifar(), cifar_resnet(56)
    data = adopt_data((images["train_x"][:items], images["train_y"][:items]), BATCH)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "answers")
        stages: dict[str, TrainStage] = {"live": Soft(), "cached": Soft(cache=path), "labels alone": Finetune()}
        began = time.process_time()
        context = Context(Classification(), objects={"train": data, "teacher": teacher})
        Cached(ModelSource("teacher", context), path, data, context).open(torch.device("cpu"))
        filled = time.process_time() - began
        size = Path(path).stat().st_size
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
        for stage in stages.values():
            timed(stage.model_copy(update={"steps": 4}), data, teacher)
        for number in range(rounds):
            for name in list(stages)[number % 3 :] + list(stages)[: number % 3]:
                found[name].append(timed(stages[name], data, teacher))
        first, later = lookups(data, teacher, path)
    rows = []
    for name, goal in (("live", 0.58), ("labels alone", 1.05)):
        ratios = sorted(one / two for (one, _), (two, _) in zip(found["cached"], found[name], strict=True))
        median = [f"{statistics.median(step for step, _ in found[each]):.0f}" for each in ("cached", name)]
        once = [f"{statistics.median(cost for _, cost in found[each]):.0f}" for each in ("cached", name)]
        rows.append([f"cached / {name}", *median, f"{statistics.median(ratios):.3f}", f"{ratios[0]:.3f} - {ratios[-1]:.3f}", f"<= {goal}", *once])
    facts = {"seed": SEED, "n": rounds, "items": items, "batch": BATCH, "filling_s": f"{filled:.2f}", "bytes": size}
    facts |= {"lookup_ms_by_content": f"{first:.3f}", "lookup_ms_by_number": f"{later:.3f}"}
    keep("teacher_cache", facts, HEAD, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--items", type=int, default=1280)
    asked = parser.parse_args()
    main(asked.rounds, asked.items)

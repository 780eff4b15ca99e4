"""Benchmark 1: every technique of distillation with its defaults, against the same student without a teacher, in three small studies.

    python -m tests.benchmarks.bench_techniques [--seeds 5] [--studies fashion fsdd cifar] [--only soft hints] [--table]

Control and taught students begin with the same weights and see the same batches in the same order for as many steps; the last
epoch counts. Each run is added to results/techniques.jsonl at once, so that an interrupted benchmark goes on where it stopped;
`--table` makes the table of what is there. Settings were chosen on validation data, and the table is of the test data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kdkit.errors import KdError
from kdkit.measurement.confidence import SEEDS, gap_share, t_interval, verdict
from tests.benchmarks.studies import LOOP, STUDIES, accuracy, load
from tests.benchmarks.timing import RESULTS, keep
from tests.fixtures.data_folder import absent

CONTROL = "tune finetune"
TEACHER = "teacher"
LINES = (
    "soft",
    "decoupled",
    "standardized",
    "correlation",
    "attention",
    "hints",
    "similarity",
    "relations",
    "probability",
    "correlation-congruence",
    "contrast",
    "variational",
    "self",
    "mutual",
    "pseudo-labels --data rest --labelled train",
    "flow",
    "review",
    'soft --also "similarity"',
    "unlabelled",
    "discriminator",
    "soft --divergence reverse",
    "soft --divergence jensen-shannon",
    "soft --divergence mse",
    "born-again",
)
"""The techniques, in the order in which each seed runs them."""
RUNS = RESULTS / "techniques.jsonl"


def runs() -> dict[tuple[str, str, int], float]:
    """(study, line, seed) -> accuracy on the test data, of all runs so far."""
    lines = RUNS.read_text().splitlines() if RUNS.exists() else []
    return {(run["study"], run["line"], run["seed"]): run["accuracy"] for run in map(json.loads, lines)}


def measure(seeds: int, studies: Sequence[str], only: Sequence[str]) -> None:
    """Run what has not run yet, seed by seed, so that all rows have about as many seeds whenever it is stopped."""
    loaded = {name: load(name) for name in studies}
    for name, study in loaded.items():
        if (name, TEACHER, 0) not in runs():
            _add(name, TEACHER, 0, accuracy(study.teacher, study.test), 0.0)
    lines = [CONTROL, *(line for line in LINES if not only or line.split()[0] in only)]
    done = runs()
    for seed in range(seeds):
        for line in lines:
            for name, study in loaded.items():
                if (name, line, seed) in done:
                    continue
                began = time.process_time()
                try:
                    found = accuracy(study.trained(line if line == CONTROL else f"distill {line}", seed), study.test)
                except KdError as error:
                    print(f"{name}: {line}: {error}", flush=True)
                    continue
                _add(name, line, seed, found, time.process_time() - began)


def _add(study: str, line: str, seed: int, figure: float, seconds: float) -> None:
    run = {"study": study, "line": line, "seed": seed, "accuracy": round(figure, 3), "cpu_s": round(seconds, 1)}
    print(run, flush=True)
    with RUNS.open("a") as file:
        file.write(json.dumps(run) + "\n")


def table(found: dict[tuple[str, str, int], float]) -> Iterator[list[Any]]:
    """A row for each technique: for each study the mean gain with its 95 % interval, the share of the gap, n, and the verdict."""
    for line in LINES:
        cells = [_cell(found, study, line) for study in STUDIES]
        if any(cells):
            yield [f"`{line}`", *(cell or "-" for cell in cells)]


def _cell(found: dict[tuple[str, str, int], float], study: str, line: str) -> str:
    seeds = [seed for name, other, seed in found if name == study and other == line and (study, CONTROL, seed) in found]
    if not seeds:
        return ""
    gains = [found[study, line, seed] - found[study, CONTROL, seed] for seed in seeds]
    interval, control = t_interval(gains), statistics.fmean(found[study, CONTROL, seed] for seed in seeds)
    share = gap_share(control, control + interval.mean, found[study, TEACHER, 0], "higher")
    bounds = f" ({interval.low:+.1f} to {interval.high:+.1f})" if len(gains) > 1 else ""
    return f"{interval.mean:+.1f}{bounds}, {share or 0:.0%} of the gap, {verdict(gains) if len(gains) > 1 else 'n = 1'}".replace("%", " %")


def report() -> None:
    """Print the table of what has run, and keep it."""
    found = runs()
    controls = {name: [value for (study, line, _), value in found.items() if study == name and line == CONTROL] for name in STUDIES}
    teachers = {name: found.get((name, TEACHER, 0), float("nan")) for name in STUDIES}
    facts = {f"{name}": f"teacher {teachers[name]:.1f} %, student alone {statistics.fmean(held):.1f} % (n = {len(held)})" for name, held in controls.items() if held}
    keep("techniques", facts | {"training": LOOP}, ("distill", *STUDIES), list(table(found)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--studies", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--table", action="store_true", help="only make the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ready = [name for name in given.studies if not (missing := absent(*STUDIES[name][1])) or print(f"{name}: skipped, {missing}")]
    if not given.table:
        measure(given.seeds, ready, given.only)
    report()

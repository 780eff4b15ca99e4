"""Timing for the benchmarks: calls in turn, in blocks, by CPU time; and results kept with date and machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int, block: int) -> dict[str, float]:
    """CPU milliseconds of each call: in every round each is called `block` times in a row, one after another; the median over rounds.

    CPU time is what other processes disturb least; a block keeps a model's weights in the cache, as somebody who calls one model does.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            began = time.process_time()
            for _ in range(block):
                call()
            times[name].append((time.process_time() - began) / block * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def keep(name: str, facts: Mapping[str, Any], head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table and keep it in results/, with the date and the machine."""
    facts = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads(), **facts}
    line = ", ".join(f"{key} {value}" for key, value in facts.items())
    table = "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows))
    print(f"{name}: {line}\n\n{table}\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"{line}\n\n{table}\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({"facts": facts, "head": list(head), "rows": [list(row) for row in rows]}, indent=1) + "\n")


def machine() -> str:
    """The processor, and how many cores of it there are."""
    import os

    found = (
        [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return f"{found[0] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"

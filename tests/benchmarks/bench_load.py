"""What `%kd` costs a notebook before it does anything: loading the extension, a hook call, a status.

Goals: `%load_ext kdkit` beyond bare IPython <= 0.15 s; a hook call and a `%kd` status <= 20 ms. Each repetition is a process
of its own, with torch already imported where a user would have it. A status is counted with both of its forms, text and HTML.

    python -m tests.benchmarks.bench_load [--rounds 7]

Nothing here asserts a time; the table is printed and written to results/load.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

ROUND = """
import json, statistics, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()

def timed(work, times=1):
    each = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        each.append(1000 * (time.perf_counter() - began))
    return statistics.median(each)

def status():
    told = shell.run_line_magic("kd", "")
    return repr(told), told._repr_html_()

found = {"%load_ext kdkit": timed(lambda: shell.run_line_magic("load_ext", "kdkit"))}
import torch
found["first line: verbs, pydantic, pluggy"] = timed(status)
net, data = torch.nn.Linear(4, 2), (torch.randn(8, 4), torch.arange(8) % 2)
shell.push({"net": net, "data": data})
shell.run_line_magic("kd", "use net --train {data} --eval {data} --measures quality parameters")
for _ in range(4):
    shell.run_line_magic("kd", "tune finetune --steps 1 --quiet")
from kdkit import hookimpl
from kdkit.plugins.manager import manager

class Plugin:
    @hookimpl
    def kdkit_event(self, event): pass
    @hookimpl
    def kdkit_adopt_model(self, obj): pass

for name in "abc":
    manager().add(Plugin(), name)
found["a hook call, 3 plugins, one by one"] = timed(lambda: manager().each("kdkit_event", print, event=None), 200)
found["a hook call, 3 plugins, first result"] = timed(lambda: manager().hook.kdkit_adopt_model(obj=net), 200)
found["%kd status of 5 versions"] = timed(status, 30)
found["completion of '%kd prune channels --'"] = timed(lambda: shell.complete(None, "%kd prune channels --", 21), 30)
print(json.dumps(found))
"""


def main() -> None:
    """Run the rounds, print and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = [once() for _ in range(parser.parse_args().rounds)]
    figures = {name: [each[name] for each in rounds] for name in rounds[0]}
    reported = [{"what": name, "median_ms": statistics.median(times), "low_ms": min(times), "high_ms": max(times), "n": len(times)} for name, times in figures.items()]
    for row in reported:
        print(f"{row['what']:42} {row['median_ms']:9.3f} ms   ({row['low_ms']:.3f} to {row['high_ms']:.3f}, n {row['n']})")
    facts = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.machine(), "python": platform.python_version()}
    (RESULTS / "load.json").write_text(json.dumps({"facts": facts, "results": reported}, indent=1) + "\n")


def once() -> dict[str, float]:
    """One fresh process: what each thing took, in ms."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ROUND], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

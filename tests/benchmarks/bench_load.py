"""What `%kd` costs a notebook before it does anything: loading the extension, a hook call, a status.

Goals: `%load_ext kdkit` beyond bare IPython <= 0.05 s, the first line <= 0.25 s, a hook call and a `%kd` status <= 20 ms. Each
repetition is a process of its own, with torch already imported where a user would have it. A status is counted with both of its
forms, text and HTML. Times are CPU times, which other work on the machine disturbs less.

    python -m tests.benchmarks.bench_load [--rounds 7] [--against FOLDER]

`--against` takes the checkout of another release, whose rounds alternate with these; its package metadata, with the entry points
of that release, are found first on PYTHONPATH in FOLDER/site.

Nothing here asserts a time; the table is printed and written to results/load.json and load.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.timing import keep

HERE = Path(__file__).parents[2]

ROUND = """
import json, statistics, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()

def timed(work, times=1):
    each = []
    for _ in range(times):
        began = time.process_time()
        work()
        each.append(1000 * (time.process_time() - began))
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
    parser.add_argument("--against", type=Path)
    given = parser.parse_args()
    folders = {"here": HERE} | ({"against": given.against.absolute()} if given.against else {})
    rounds = [{name: once(folder) for name, folder in folders.items()} for _ in range(given.rounds)]
    keep("load", {"n": given.rounds, "unit": "ms of CPU time"}, ("what", *folders), list(table(rounds)))


def table(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> Iterator[list[str]]:
    """A row for each thing: the median of its times, and the range, for each checkout."""
    for what in rounds[0]["here"]:
        columns = [[each[folder][what] for each in rounds] for folder in rounds[0]]
        yield [what, *(f"{statistics.median(times):.3g} ({min(times):.3g} to {max(times):.3g})" for times in columns)]


def once(folder: Path) -> dict[str, float]:
    """One new process with the kdkit of a checkout: what each thing took, in ms of CPU time."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (folder, folder / "plugins", folder / "site")))}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", ROUND], capture_output=True, text=True, check=True, env=environment, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

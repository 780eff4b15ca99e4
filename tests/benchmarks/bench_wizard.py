"""What the wizard costs: how soon its form is there, how soon a click is answered, and what showing a training costs it.

Goals: the form shown <= 0.5 s after the call, the models loaded; first progress <= 1.5 s after a click on Run; live updates <= 2 % of
training time; Results with 200 versions redrawn <= 0.5 s.

A kernel of its own does the work, as in JupyterLab; here stand the other end of its messages and the clock: from the request to the last
message about a widget. What a browser does with them is not in it. Beside the time stands the kernel's CPU time, which other processes
disturb less. For the updates, one training is shown in every second stretch and not in between.

    python -m tests.benchmarks.bench_wizard [--rounds 7]          # five minutes

Nothing here asserts a time; the table is printed and written to results/wizard.json and .md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.benchmarks.timing import keep

DIGITS = """
%load_ext kdkit
import gc, time, torch
torch.set_num_threads(1)
from sklearn.datasets import load_digits
from torch import nn

digits = load_digits()
data = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
net = nn.Sequential(
    nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
    nn.MaxPool2d(2), nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, 10),
)
few = data[0][:200], data[1][:200]
started = %kd use net --train {data} --eval {few} --measures quality parameters size macs
"""

STRETCHES = """
w = %kd wizard --from "tune finetune --epochs 1000"
w.open("Run")
pane, entered, stretches, showing, LENGTH = w.wizard.pane("Run"), [], [], [], 1.0

def observe(progress):
    \"\"\"Show the training in every second stretch of LENGTH seconds; note each stretch's CPU time and steps.\"\"\"
    now = time.monotonic()
    if not entered or now - entered[0] > LENGTH:
        if entered:
            stretches.append((entered[3], time.process_time() - entered[1], progress.done - entered[2]))
        entered[:] = [now, time.process_time(), progress.done, not (entered and entered[3])]
    if entered[3]:
        began = time.thread_time()
        pane._observe(progress)
        showing.append(time.thread_time() - began)

begun = w.wizard.do("training", w.lines, observe)
while len(stretches) < 2 * ROUNDS + 2:
    time.sleep(0.2)
w.wizard.session.cancel()
w.wait()
"""


class Kernel:
    """A kernel with its widgets, as a front end sees them.

    Attributes:
        widgets: the state of each by its comm.
    """

    def __init__(self, client: BlockingKernelClient):
        self.client, self.widgets = client, dict[str, dict[str, Any]]()

    def run(self, code: str, patience: float = 60) -> tuple[float, int, int]:
        """Execute a cell; gives seconds from the request to the last message about a widget, how many there were, and their bytes.

        Raises:
            RuntimeError: the cell failed.
        """
        began, last, count, size = time.perf_counter(), 0.0, 0, 0
        request = self.client.execute(code)
        for message in self.received(patience):
            if message["msg_type"].startswith("comm_"):
                last, count, size = time.perf_counter() - began, count + 1, size + len(str(message["content"]))
            if message["msg_type"] == "error":
                raise RuntimeError("\n".join(message["content"]["traceback"]))
            if message["parent_header"].get("msg_id") == request and message["content"].get("execution_state") == "idle":
                break
        return last, count, size

    def ask(self, expression: str) -> Any:
        """The value of an expression in the kernel."""
        reply = self.client.execute("", silent=True, user_expressions={"asked": expression}, reply=True, timeout=60)
        return eval(reply["content"]["user_expressions"]["asked"]["data"]["text/plain"])

    def received(self, patience: float) -> Iterator[dict[str, Any]]:
        """What the kernel says, until it says nothing for so many seconds."""
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=patience)
            except Empty as silence:
                raise RuntimeError(f"the kernel said nothing for {patience:g} s") from silence
            content = message["content"]
            if message["msg_type"] == "comm_open":
                self.widgets[content["comm_id"]] = dict(content["data"]["state"])
            elif message["msg_type"] == "comm_msg":
                self.widgets.get(content["comm_id"], {}).update(content["data"].get("state", {}))
            yield message

    def click(self, description: str, shown: Callable[[dict[str, Any]], bool]) -> float:
        """Click the newest button called so; gives seconds until a widget's new state is `shown`."""
        comm = [comm for comm, state in self.widgets.items() if state.get("_model_name") == "ButtonModel" and state.get("description") == description][-1]
        began = time.perf_counter()
        content = {"comm_id": comm, "data": {"method": "custom", "content": {"event": "click"}}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", content))
        for message in self.received(60):
            if message["msg_type"] == "comm_msg" and shown(message["content"]["data"].get("state", {})):
                return time.perf_counter() - began
        raise RuntimeError("it was never shown")


@contextmanager
def kernel() -> Iterator[Kernel]:
    """A kernel in which a model and data are, and a session on them."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, "KDKIT_STABLE": "0"}, extra_arguments=["--log-level=ERROR"])
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        made = Kernel(client)
        made.run(DIGITS)
        yield made
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def spent(there: Kernel, code: str) -> tuple[float, float, int, int]:
    """Seconds, CPU seconds, messages and bytes of a cell."""
    there.run("before = time.process_time(); None")
    seconds, count, size = there.run(code)
    return seconds, there.ask("time.process_time() - before"), count, size


def row(what: str, goal: str, found: list[tuple[float, float, int, int]]) -> list[Any]:
    """A line of the table: medians, and the range of the seconds."""
    seconds, cpu, count, size = zip(*found, strict=True)
    reported = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} - {max(seconds):.2f})"
    print(f"{what}: {reported} s", flush=True)
    return [what, goal, reported, f"{statistics.median(cpu):.2f}", int(statistics.median(count)), f"{statistics.median(size) / 1000:.0f} kB", len(found)]


def first(line: str, rounds: int) -> list[tuple[float, float, int, int]]:
    """A line, each time the first in its kernel."""
    found = []
    for _ in range(rounds):
        with kernel() as there:
            found.append(spent(there, line))
    return found


def again(there: Kernel, line: str, rounds: int, before: str = "None") -> list[tuple[float, float, int, int]]:
    """A line, over and over in one kernel."""
    found = []
    for _ in range(rounds):
        there.run(before)
        found.append(spent(there, line))
    return found


def clicks(there: Kernel, rounds: int) -> list[tuple[float, float, int, int]]:
    """From the click on Run to the first words about a step of the training."""
    found = []
    for _ in range(rounds):
        there.run('w = %kd wizard --from "tune finetune --epochs 1000"\nw.open("Run")\nw')
        before = there.ask("time.process_time()")
        seconds = there.click("Run", lambda state: " · epoch " in str(state.get("value", "")))
        found.append((seconds, there.ask("time.process_time()") - before, 0, 0))
        there.run("w.wizard.session.cancel(); w.wait()")
    return found


def updates(there: Kernel, rounds: int) -> tuple[list[float], float]:
    """CPU time of a step that is shown to one that is not, of neighbouring stretches; and the share of the shown ones that the training's
    thread spends in showing."""
    there.run(STRETCHES.replace("ROUNDS", str(rounds)), 600)
    stretches = [(shown, cpu / steps) for shown, cpu, steps in there.ask("stretches")][2:]
    ratios = sorted(one[1] / other[1] for one, other in zip(stretches[::2], stretches[1::2], strict=False))
    return ratios, there.ask("sum(showing) / sum(cpu for shown, cpu, _ in stretches if shown)")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    began = os.getloadavg()[0]
    rows = []
    for line in ("%kd wizard", "%kd wizard distill soft"):
        rows.append(row(f"`{line}`, the first in its kernel", "0.5 s", first(line, min(rounds, 3))))
    with kernel() as there:
        there.run("%kd wizard distill soft")
        for line in ("%kd wizard", "%kd wizard distill soft"):
            rows.append(row(f"`{line}`, again", "0.5 s", again(there, line, rounds)))
        rows.append(row("click on Run to the first step that is told", "1.5 s", clicks(there, rounds)))
        ratios, share = updates(there, 10 * rounds)
        reported = f"{statistics.median(ratios):.3f} ({statistics.quantiles(ratios)[0]:.3f} - {statistics.quantiles(ratios)[2]:.3f})"
        rows.append(["a step that is shown to one that is not, CPU time, quartiles", "1.02", reported, "", "", "", len(ratios)])
        rows.append(["the share of its CPU time in which its thread shows it", "0.02", f"{share:.4f}", "", "", "", 1])
        there.run("for _ in range(199): made = get_ipython().run_line_magic('kd', 'tune finetune --steps 1 --quiet')", 600)
        rows.append(row("Results with 200 versions, opened", "0.5 s", again(there, 'w.open("Results")', rounds, "w = %kd wizard")))
        redraw = 'w.set("cost", "size")'
        rows.append(row("its frontier, drawn for another cost", "0.5 s", again(there, redraw, rounds, 'w.set("cost", "parameters")')))
    facts = {"load at begin and end": f"{began:.1f} {os.getloadavg()[0]:.1f}"}
    keep("wizard", facts, ["what", "goal", "seconds, median (range)", "CPU s", "messages", "bytes", "n"], rows)


if __name__ == "__main__":
    main()

"""A real JupyterLab on loopback, and a Chromium that works in it as a person would: for the browser tests and for the README's pictures.

    with serve(folder) as lab, chromium() as browser:
        notebook = Notebook(browser.new_page(), lab)
        notebook.open(lab.write("a.ipynb", "%load_ext kdkit"))
        notebook.run("%kd list prune").output.screenshot(path="list.png")

What the server, the kernels and the browser write goes into a folder that is removed, except notebooks that are saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
PATIENCE = 120
"""Seconds after which something that should have come is taken not to come; a machine may be busy."""
expect.set_options(timeout=1000 * PATIENCE)

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # root has none
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "codemirror-extension/plugin": {"defaultConfig": {"cursorBlinkRate": 0}},
    "docmanager-extension/plugin": {"autosave": False},
    # by default cells out of view have no layout
    "notebook-extension/tracker": {"windowingMode": "none"},
}
KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
"""Without it Lab asks in a dialog which kernel is meant."""


@dataclass(frozen=True)
class Lab:
    """A running server: where notebooks are, its address, and the token that it wants."""

    folder: Path
    url: str
    token: str

    def write(self, name: str, *sources: str) -> str:
        """Write a notebook of code cells; give its name."""
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})
        nbformat.write(notebook, self.folder / name)
        return name

    def shut_down(self) -> None:
        """End all kernels; no notebook should be open."""
        for session in json.loads(self._ask("sessions")):
            self._ask(f"sessions/{session['id']}", "DELETE")

    def _ask(self, what: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"{self.url}/api/{what}", method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Lab]:
    """JupyterLab on the notebooks of `folder`, with a home of its own; kernels show progress even where it is turned off for the caller."""
    with tempfile.TemporaryDirectory(prefix="kdkit-lab-") as home:
        places = {f"JUPYTER_{name}_DIR": f"{home}/{name.lower()}" for name in ("CONFIG", "DATA", "RUNTIME")}
        places |= {f"JUPYTERLAB_{name}_DIR": f"{home}/{name.lower()}" for name in ("SETTINGS", "WORKSPACES")}
        for name, values in SETTINGS.items():
            path = Path(home, "settings", "@jupyterlab", f"{name}.jupyterlab-settings")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        environment = {**os.environ, **places, "IPYTHONDIR": f"{home}/ipython", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "KDKIT_STABLE": "0"}
        options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={folder}"]
        options += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--LabApp.extension_manager=readonly", "--LanguageServerManager.autodetect=False"]
        options += [f"--FileCheckpoints.checkpoint_dir={home}/checkpoints"]
        log = Path(home, "log")
        with log.open("w") as file:
            server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try:
            yield Lab(folder, *_address(server, Path(home, "runtime"), log))
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _address(server: subprocess.Popen, runtime: Path, log: Path) -> tuple[str, str]:
    """The address and the token, once the server answers there."""
    patience = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < patience:
        with contextlib.suppress(OSError, StopIteration, json.JSONDecodeError):
            told = json.loads(next(runtime.glob("jpserver-*.json")).read_text())
            url, token = f"http://127.0.0.1:{told['port']}", told["token"]
            urllib.request.urlopen(f"{url}/api/status?token={token}", timeout=5).close()
            return url, token
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start; it says:\n{log.read_text()[-3000:]}")


def executable() -> str | None:
    """Chromium's path, None where it is not installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium of the system's; it can reach nothing but this machine."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Notebook:
    """An open notebook in a page of the browser.

    Attributes:
        errors: exceptions of the page's scripts.
        outside: addresses off this machine that the page asked for.
    """

    def __init__(self, page: Page, lab: Lab) -> None:
        self.page, self.lab = page, lab
        self.errors: list[str] = []
        self.outside: list[str] = []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((lab.url, "data:", "blob:")) else self.outside.append(request.url))

    def open(self, name: str) -> None:
        """Open a notebook, as new if it is open, and wait for its kernel."""
        self.page.goto(f"{self.lab.url}/lab/tree/{name}?token={self.lab.token}&reset", wait_until="domcontentloaded")
        self.page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
        self.page.wait_for_function("() => { const at = jupyterapp.shell.currentWidget?.sessionContext; return at?.isReady && at.session?.kernel?.status === 'idle'; }")

    def command(self, name: str, **arguments: Any) -> None:
        """Have Lab do what one of its menus or keys does, and wait until it has."""
        self.page.evaluate("async ([name, given]) => { await jupyterapp.commands.execute(name, given); }", [name, arguments])

    def theme(self, name: str) -> None:
        """Make Lab "light" or "dark"."""
        if self.page.locator(f"body[data-jp-theme-name='{THEMES[name]}']").count():
            return
        self.command("apputils:change-theme", theme=THEMES[name])
        self.page.locator(f"body[data-jp-theme-name='{THEMES[name]}']").wait_for(state="attached")
        # it covers the page while styles load
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def cell(self, index: int) -> Cell:
        """The cell at a place, from 0; below 0 from the end."""
        return Cell(self, index)

    def sources(self) -> list[str]:
        """What stands in the cells."""
        return self.page.evaluate("() => jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.sharedModel.getSource())")

    def add(self, source: str) -> Cell:
        """Add a cell at the end and make it the active one, in command mode."""
        self.page.evaluate(
            """source => {
                const notebook = jupyterapp.shell.currentWidget.content;
                notebook.model.sharedModel.addCell({ cell_type: 'code', source });
                notebook.deselectAll();
                notebook.activeCellIndex = notebook.widgets.length - 1;
                notebook.mode = 'command';
            }""",
            source,
        )
        return self.cell(len(self.sources()) - 1)

    def start(self, source: str) -> Cell:
        """Run a cell that is added at the end, without waiting for it."""
        cell = self.add(source)
        cell.start()
        return cell

    def run(self, source: str) -> Cell:
        """Run a cell that is added at the end; it must not fail."""
        cell = self.start(source)
        cell.wait()
        if cell.error():
            raise RuntimeError(f"{source}\n{cell.error()}")
        return cell

    def fail(self, source: str) -> Cell:
        """Run a cell that is added at the end; it must fail."""
        cell = self.start(source)
        cell.wait()
        if not cell.error():
            raise RuntimeError(f"{source}\ndid not fail")
        return cell

    def ask(self, expression: str) -> str:
        """The text of a Python expression in this notebook's kernel; no cell, output or history of it is left."""
        reply = self.page.evaluate(
            """async expression => {
                const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const asked = kernel.requestExecute({ code: '', silent: true, store_history: false, user_expressions: { asked: expression } });
                return (await asked.done).content.user_expressions.asked;
            }""",
            expression,
        )
        if reply["status"] != "ok":
            raise RuntimeError(f"{expression}: {reply['ename']}: {reply['evalue']}")
        return reply["data"]["text/plain"]

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, where the focus is."""
        for key in keys:
            self.page.keyboard.press(key)


class Cell:
    """A cell of an open notebook."""

    def __init__(self, notebook: Notebook, index: int) -> None:
        self.notebook = notebook
        self.box: Locator = notebook.page.locator(".jp-Notebook-cell").nth(index)
        self.index = index

    @property
    def output(self) -> Locator:
        """All that the cell put out."""
        # an Output widget has an output area of its own
        return self.box.locator(".jp-Cell-outputArea")

    @property
    def prompt(self) -> Locator:
        """`[ ]:` before the cell has run, `[*]:` while it runs, then `[1]:`."""
        return self.box.locator(".jp-InputArea-prompt")

    def select(self) -> None:
        """Make it the active cell, in command mode, the focus on it."""
        self.prompt.click()

    def activate(self) -> None:
        """The same without the mouse, which may miss while outputs above change their height."""
        self.notebook.page.evaluate(
            """index => {
                const notebook = jupyterapp.shell.currentWidget.content;
                notebook.deselectAll();
                notebook.activeCellIndex = index;
                notebook.mode = 'command';
            }""",
            self.index,
        )

    def edit(self) -> None:
        """Put the cursor into it."""
        self.box.locator(".cm-content").click()

    def interrupt(self) -> None:
        """Interrupt the kernel with the keys for it."""
        self.select()
        self.notebook.press("i", "i")

    def start(self) -> None:
        """Run the active cell without waiting for it."""
        self.notebook.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-cell'); }")

    def error(self) -> str:
        """The error that the cell ended with, empty where it did not."""
        return self.notebook.page.evaluate(
            """index => {
                const outputs = jupyterapp.shell.currentWidget.content.widgets.at(index).model.outputs.toJSON();
                return outputs.filter(output => output.output_type === 'error').map(output => `${output.ename}: ${output.evalue}`).join('\\n');
            }""",
            self.index,
        )

    def wait(self) -> None:
        """Until it has run."""
        expect(self.prompt).to_have_text(re.compile(r"\[\d+\]:"))

"""A real JupyterLab on loopback, and a Chromium that controls it as a person would: for the browser tests and the README's pictures.

    with serve(folder) as lab, chromium() as browser:
        notebook = Notebook(browser.new_page(), lab)
        notebook.open(lab.write("a.ipynb", "%load_ext kdkit"))
        notebook.run("%kd list prune").output.screenshot(path="list.png")

The server, the kernels and the browser write to a folder that is removed afterwards; only saved notebooks remain.
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
"""Timeout in seconds; long, since the machine may be busy."""
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
"""Without it Lab asks for the kernel in a dialog."""


@dataclass(frozen=True)
class Lab:
    """A running server: its folder of notebooks, its address, and its token."""

    folder: Path
    url: str
    token: str

    def write(self, name: str, *sources: str) -> str:
        """Write a notebook of code cells and return its name."""
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})
        nbformat.write(notebook, self.folder / name)
        return name

    def shut_down(self) -> None:
        """Shut down all kernels; close open notebooks first."""
        for session in json.loads(self._ask("sessions")):
            self._ask(f"sessions/{session['id']}", "DELETE")

    def _ask(self, what: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"{self.url}/api/{what}", method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read()


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Lab]:
    """Run JupyterLab on the notebooks of `folder`, with its own home folder; kernels show progress even if the caller turned it off."""
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
    """The address and the token, as soon as the server responds."""
    patience = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < patience:
        with contextlib.suppress(OSError, StopIteration, json.JSONDecodeError):
            found = json.loads(next(runtime.glob("jpserver-*.json")).read_text())
            url, token = f"http://127.0.0.1:{found['port']}", found["token"]
            urllib.request.urlopen(f"{url}/api/status?token={token}", timeout=5).close()
            return url, token
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start; its log:\n{log.read_text()[-3000:]}")


def executable() -> str | None:
    """The path of Chromium, None if it is not installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium without a window; it can only reach this machine."""
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
        outside: addresses on other machines that the page requested.
    """

    def __init__(self, page: Page, lab: Lab) -> None:
        self.page, self.lab = page, lab
        self.errors: list[str] = []
        self.outside: list[str] = []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((lab.url, "data:", "blob:")) else self.outside.append(request.url))

    def open(self, name: str) -> None:
        """Open a notebook, or open it again, and wait for its kernel."""
        self.page.goto(f"{self.lab.url}/lab/tree/{name}?token={self.lab.token}&reset", wait_until="domcontentloaded")
        self.page.locator(".jp-NotebookPanel .jp-Cell").first.wait_for()
        self.page.wait_for_function("() => { const at = jupyterapp.shell.currentWidget?.sessionContext; return at?.isReady && at.session?.kernel?.status === 'idle'; }")

    def command(self, name: str, **arguments: Any) -> None:
        """Execute one of Lab's commands and wait until it is finished."""
        self.page.evaluate("async ([name, given]) => { await jupyterapp.commands.execute(name, given); }", [name, arguments])

    def theme(self, name: str) -> None:
        """Choose Lab's theme, "light" or "dark"."""
        if self.page.locator(f"body[data-jp-theme-name='{THEMES[name]}']").count():
            return
        self.command("apputils:change-theme", theme=THEMES[name])
        self.page.locator(f"body[data-jp-theme-name='{THEMES[name]}']").wait_for(state="attached")
        # covers the page while styles load
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def cell(self, index: int) -> Cell:
        """The cell at an index; negative numbers count from the end."""
        return Cell(self, index)

    def sources(self) -> list[str]:
        """The source of each cell."""
        return self.page.evaluate("() => jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.sharedModel.getSource())")

    def add(self, source: str) -> Cell:
        """Add a cell at the end and select it, in command mode."""
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
        """Add a cell at the end and run it, without waiting for it."""
        cell = self.add(source)
        cell.start()
        return cell

    def run(self, source: str) -> Cell:
        """Add a cell at the end and run it; it must not fail."""
        cell = self.start(source)
        cell.wait()
        if cell.error():
            raise RuntimeError(f"{source}\n{cell.error()}")
        return cell

    def fail(self, source: str) -> Cell:
        """Add a cell at the end and run it; it must fail."""
        cell = self.start(source)
        cell.wait()
        if not cell.error():
            raise RuntimeError(f"{source}\ndid not fail")
        return cell

    def ask(self, expression: str) -> str:
        """Evaluate a Python expression in this notebook's kernel and return its repr; leaves no cell, output or history."""
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
        """Press keys, one after another, on the focused element."""
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
        """All outputs of the cell."""
        # an Output widget has an output area of its own
        return self.box.locator(".jp-Cell-outputArea")

    @property
    def prompt(self) -> Locator:
        """`[ ]:` before the cell has run, `[*]:` while it runs, then `[1]:`."""
        return self.box.locator(".jp-InputArea-prompt")

    def select(self) -> None:
        """Make it the active cell, in command mode, and focus it."""
        self.prompt.click()

    def activate(self) -> None:
        """The same without the mouse, which may miss the cell while outputs above it change their height."""
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
        """Interrupt the kernel by keyboard."""
        self.select()
        self.notebook.press("i", "i")

    def start(self) -> None:
        """Run the active cell without waiting for it."""
        self.notebook.page.evaluate("() => { jupyterapp.commands.execute('notebook:run-cell'); }")

    def error(self) -> str:
        """The error of the cell, "" if it succeeded."""
        return self.notebook.page.evaluate(
            """index => {
                const outputs = jupyterapp.shell.currentWidget.content.widgets.at(index).model.outputs.toJSON();
                return outputs.filter(output => output.output_type === 'error').map(output => `${output.ename}: ${output.evalue}`).join('\\n');
            }""",
            self.index,
        )

    def wait(self) -> None:
        """Wait until it has run."""
        expect(self.prompt).to_have_text(re.compile(r"\[\d+\]:"))

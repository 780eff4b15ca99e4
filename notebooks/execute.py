"""Run a notebook as a person would, say what it is doing, and leave the executed notebook and its HTML.

    python -m notebooks.execute notebooks/quickstart.ipynb build

A cell tagged `raises-exception` must raise.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter


def execute(source: Path, folder: Path) -> int:
    """Execute `source` cell by cell into `folder`; return the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.read(source, as_version=4)
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(source.parent)}}, record_timing=False, extra_arguments=["--log-level=ERROR"])
    began, failed = time.perf_counter(), None
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                print(f"\n{cell.source.splitlines()[0]}")
                continue
            print(f"[{time.perf_counter() - began:5.1f} s] {index + 1}/{len(notebook.cells)}  {cell.source.splitlines()[0]}", flush=True)
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                failed = error
                break
            show(cell.outputs)
    target = folder / source.name
    nbformat.write(notebook, target)
    target.with_suffix(".html").write_text(HTMLExporter().from_notebook_node(notebook)[0])
    print(f"\n{failed or 'done'} after {time.perf_counter() - began:.0f} s: {target} and {target.with_suffix('.html')}")
    return 1 if failed else 0


def show(outputs: list) -> None:
    """Print what a cell put out, as text."""
    for output in outputs:
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        if text and "image/svg+xml" not in output.get("data", {}):
            print("    " + text.rstrip().replace("\n", "\n    "))


if __name__ == "__main__":
    sys.exit(execute(Path(sys.argv[1]), Path(sys.argv[2])))

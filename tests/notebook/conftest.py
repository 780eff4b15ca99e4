"""A notebook without a kernel: an IPython shell of the test's own, in which cells run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import nn
from traitlets.config import Config

from kdkit import notebook
from kdkit.errors import KdError

USE = "%kd use net --train {train} --eval {train} --measures quality parameters size"


class Notebook:
    """Runs cells and gives what they give."""

    def __init__(self) -> None:
        settings = Config()
        settings.HistoryManager.enabled = False
        self.shell = InteractiveShell(config=settings)
        self.shell.run_line_magic("load_ext", "kdkit")

    def give(self, cell: str) -> Any:
        """The value of the cell's last line, None where it has none."""
        result = self.shell.run_cell(cell)
        result.raise_error()
        return result.result

    def fails(self, cell: str) -> KdError:
        """The error that the cell ends with; it must be one message, not a traceback."""
        error = self.shell.run_cell(cell).error_in_exec
        assert isinstance(error, KdError), f"{cell!r} gave {error!r}"
        return error

    @property
    def session(self) -> Any:
        return notebook.session(self.shell)

    def complete(self, text: str) -> list[str]:
        """What Tab offers at the end of `text`: the whole last word each time."""
        *_, line = text.split("\n")
        self.shell.Completer.use_jedi = False
        found = self.shell.Completer._complete(cursor_line=text.count("\n"), cursor_pos=len(line), full_text=text)
        mine = found.get("kdkit", {"completions": []})
        return [completion.text for completion in mine["completions"]]


@pytest.fixture
def bare():
    """A notebook in which only kdkit is loaded."""
    made = Notebook()
    yield made
    notebook.unload(made.shell)


@pytest.fixture
def cells(bare):
    """A notebook with a small net and data in it, and a session on them."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(32, 8), torch.arange(32) % 4
    bare.shell.push(
        {
            "net": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
            "big": nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)),
            "train": (inputs, labels),
            "loaders": {"a b": (inputs, labels)},
        }
    )
    bare.give(USE)
    return bare

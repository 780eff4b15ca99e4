"""Surroundings: what a stage can leave behind outside of models and data: files, text on stdout, settings of the process, other methods of torch's classes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from kdkit.guards.process_state import ProcessState


@contextlib.contextmanager
def surroundings_kept(model: nn.Module, report: Callable[[str], None]) -> Iterator[None]:
    """Run the block in an empty working directory and put back what it changes around it.

    Args:
        model: whose classes are watched, with those of torch.
        report: called with each change, one line.

    >>> with surroundings_kept(nn.Linear(2, 2), print):
    ...     print("done")
    printed 'done' to stdout
    """
    printed, shown = io.StringIO(), io.StringIO()
    with _empty_directory() as folder:
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(shown):
                state, methods = ProcessState(random_state=False), Methods(model)
                try:
                    yield
                finally:
                    for what in [f"changed {name}" for name in state.put_back(trusted=True)] + [f"replaced {name}" for name in methods.put_back()]:
                        report(what)
        finally:
            for what in (*_files(folder), *_printed(printed.getvalue(), shown.getvalue())):
                report(what)
    sys.stderr.write(shown.getvalue())


@contextlib.contextmanager
def _empty_directory() -> Iterator[Path]:
    before, path = Path.cwd(), list(sys.path)
    with tempfile.TemporaryDirectory(prefix="kdkit-testing-", ignore_cleanup_errors=True) as folder:
        sys.path[:] = [entry or str(before) for entry in path]  # modules beside the notebook can still be imported
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            sys.path[:] = path


def _files(folder: Path) -> Iterator[str]:
    if left := sorted(path.name for path in folder.iterdir()):
        yield f"left {left[0]}{f' and {len(left) - 1} more' if left[1:] else ''} in the working directory"


def _printed(out: str, err: str) -> Iterator[str]:
    for text, what, where in ((out, "printed", "stdout"), (err if "\r" in err else "", "showed a progress bar", "stderr")):
        if text:
            first = next((line for line in text.splitlines() if line.strip()), text).strip()
            yield f"{what} {first[:40]!r} to {where}"


class Methods:
    """The functions of torch, and the methods of its classes and of those of a model."""

    def __init__(self, model: nn.Module):
        spaces: tuple[ModuleType, ...] = (torch, torch.nn, torch.nn.functional, torch.nn.init, torch.optim, torch.utils.data)
        classes = {found for space in spaces[1:] for found in vars(space).values() if isinstance(found, type)}
        classes |= {kind for module in model.modules() for kind in type(module).__mro__} | {torch.Tensor, nn.Parameter}
        owners = [*spaces, *sorted((kind for kind in classes if kind.__module__ != "builtins"), key=_name_of)]
        self._before = [(owner, dict(vars(owner))) for owner in owners]

    def put_back(self) -> list[str]:
        """Restore what was replaced; returns the names.

        >>> methods, relu = Methods(nn.ReLU()), nn.ReLU.forward
        >>> nn.ReLU.forward = lambda self, x: x
        >>> methods.put_back(), nn.ReLU.forward is relu
        (['torch.nn.modules.activation.ReLU.forward'], True)
        """
        found = []
        for owner, before in self._before:
            for name, value in list(vars(owner).items()):
                replaced = _is_method(before.get(name)) or (isinstance(owner, type) and name not in before and _is_method(value))
                if replaced and value is not before.get(name) and not _is_of_torch(value):
                    found.append(f"{_name_of(owner)}.{name}")
                    setattr(owner, name, before[name]) if name in before else delattr(owner, name)
        return found


def _is_of_torch(value: Any) -> bool:
    """Whether torch wrote the code of a function: it wraps some of its own, such as the steps of optimizers."""
    code = getattr(value, "__code__", None)
    return code is not None and Path(code.co_filename).is_relative_to(Path(torch.__file__).parent)


def _is_method(value: Any) -> bool:
    return callable(value) or isinstance(value, classmethod | staticmethod | property)


def _name_of(owner: Any) -> str:
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"

"""The command `python -m kdkit`: run a recipe on a model that a function makes, or examine this machine."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kdkit.errors import KdError, did_you_mean
from kdkit.guards import explain_error
from kdkit.notebook.doctor import examine
from kdkit.pipelines.pipeline import Pipeline
from kdkit.session import Session
from kdkit.session.settings import DATA
from kdkit.storage.integrity import check_target

_NOTHING = object()
FAILED, STOPPED = 1, 130
"""Exit codes besides 0: what was asked can't be done, or Ctrl-C. argparse exits with 2 where a line is not understood."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments of a command line ask for (default: those of this process), and give the exit code.

    Errors go to stderr, without a traceback.

    >>> main(["run", "nowhere.yaml", "--model", "torch.nn:Identity"])
    1
    """
    given = _parser().parse_args(arguments)
    try:
        given.work(given)
    except KdError as error:
        print(f"kdkit: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("kdkit: stopped; no version was saved", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # whoever reads the output has ended; the version is saved before anything is printed
        return FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m kdkit", description="Compress models without a notebook.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a recipe on a model", description="Run a recipe on a model, print the figures of all versions, and save the last one.")
    run.add_argument("recipe", help="YAML file that session.recipe().save(path) wrote")
    run.add_argument(
        "--model",
        required=True,
        metavar="MODULE:NAME",
        help="the model, or a function without arguments that makes it",
    )
    run.add_argument("--data", metavar="MODULE:NAME", help="evaluation data, settings of the session by name (eval, train, calib, ...), or a function that makes them")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="save the last version there")
    run.add_argument("--force", action="store_true", help="replace the folder if it holds another version")
    run.add_argument("--seed", type=int, help="seed of all stages; default: the session's")
    run.add_argument("--anywhere", action="store_true", help="let the recipe write to places outside of the working directory")
    run.set_defaults(work=_run)
    doctor = commands.add_parser("doctor", help="show what this machine supports", description="Show what is installed, what this machine supports, and what is wrong.")
    doctor.set_defaults(work=_examine)
    return parser


def _run(given: argparse.Namespace) -> None:
    pipeline = Pipeline.load(given.recipe, given.anywhere)
    model = make_object(given.model)
    session = Session(model, **_settings(None if given.data is None else make_object(given.data)))
    if given.out is not None:
        _check_folder(given.out, given.force)
    session.run(pipeline, seed=given.seed)
    saved = "" if given.out is None else f"\nsaved in {session.save(given.out, force=given.force)}"
    print(f"{session.compare()}{saved}", flush=True)


def _settings(data: Any) -> dict[str, Any]:
    """What was given as data, as arguments of a session: a dict with the name of a data set has several settings."""
    if not isinstance(data, dict) or not any(name in data for name in DATA):
        return {"eval": data}
    if strange := [name for name in data if not isinstance(name, str) or name in ("self", "model")]:
        raise KdError(f"the dict that --data names has {strange[0]!r}, which is no setting of a session", "--model names the model")
    return data


def _check_folder(folder: Path, replace_other: bool) -> None:
    """Refuse a place where no folder can be saved, before hours of work."""
    if folder.suffix in (".yaml", ".yml"):
        raise KdError(f"--out {folder}: a version is saved in a folder", "give the name of a folder")
    check_target(folder)
    if not replace_other and folder.exists() and any(folder.iterdir()):
        raise KdError(f"--out {folder} holds a version", "--force replaces it, or choose another folder")
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(nearest, os.W_OK):
        raise KdError(f"--out {folder}: you may not write to {nearest}", "choose another folder")


def _examine(given: argparse.Namespace) -> None:
    print(examine(None), flush=True)


def make_object(place: str) -> Any:
    """The object with a name in a module, "module:name"; a class or a function is called without arguments.

    Raises:
        KdError: there is no such module or name, or the call fails.

    >>> make_object("torch.nn:Identity")
    Identity()
    """
    module, _, name = place.partition(":")
    if not module or not name:
        raise KdError(f"{place!r} does not name an object", "write MODULE:NAME, such as nets:make for the function make in nets.py")
    holder: Any = _attempt(lambda: importlib.import_module(module), f"the module {module} can't be imported")
    for part in name.split("."):
        found = _attempt(lambda holder=holder, part=part: getattr(holder, part, _NOTHING), f"{place} can't be read")  # type: ignore[misc]
        if found is _NOTHING:
            raise KdError(f"{module} has no {name}", did_you_mean(part, dir(holder)))
        holder = found
    return _attempt(holder, f"{place} failed") if _makes_objects(holder) else holder


def _makes_objects(found: Any) -> bool:
    """Whether an object is called for what it makes: classes and functions are, models and data are not."""
    return isinstance(found, type | functools.partial) or inspect.isroutine(found) or (hasattr(found, "__wrapped__") and not isinstance(found, nn.Module))


def _attempt(action: Callable[[], Any], failure: str) -> Any:
    try:
        return action()
    except KdError:
        raise
    except (Exception, SystemExit) as error:  # code of the user's own
        raise KdError(f"{failure}: {explain_error(error)}", "the same in Python shows the traceback") from error

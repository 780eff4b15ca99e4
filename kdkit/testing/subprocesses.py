"""Fresh processes: one that has loaded nothing but torch and kdkit, and one that has never run a stage.

A fresh process starts once and forks for each question, so that what one answer loaded can't help or hurt the next.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import torch

from kdkit.errors import KdError, describe_exception
from kdkit.plugins.manager import manager
from kdkit.storage.folder import load, read
from kdkit.storage.trusted_classes import canonical, path_of
from kdkit.testing import zoo
from kdkit.testing.fingerprint import fingerprint, outputs

IDLE_S = 60.0
"""After so long without a question a fresh process ends; the next question starts another."""
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from kdkit.testing.subprocesses import serve; serve()"


def load_time(module: str) -> dict[str, Any]:
    """How long a module takes to load where torch and kdkit are loaded already.

    Returns:
        `seconds` of processor time, the lesser of two loads, which a busy machine does not change; `packages` that came with it.
    """
    tries = [_ask("load", module=module) for _ in range(2)]
    return min(tries, key=lambda found: found["seconds"])


def restored(folder: str, name: str, call: bool = True) -> dict[str, Any]:
    """What a fresh process makes of a saved model.

    Args:
        folder: that `kdkit.storage.folder.save` wrote.
        name: of the zoo's model that gives the skeleton, if one is wanted.
        call: whether to call it.

    Returns:
        `print`, its fingerprint, and `outputs` for the zoo's batch where it is called; or `error`.
    """
    return _ask("restore", folder=folder, name=name, call=call, threads=torch.get_num_threads())


# the asking side


def _ask(question: str, **about: Any) -> dict[str, Any]:
    lost: OSError | None = None
    for _ in range(2):  # one that was idle may have ended just now
        server = _server(question)
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            server.stdin.write(json.dumps({"question": question, **about}) + "\n")
            server.stdin.flush()
            if answer := server.stdout.readline():
                return json.loads(answer)
        except KeyboardInterrupt:
            server.kill()  # or its answer would be taken for that to the next question
            _server.cache_clear()
            raise
        except OSError as error:
            lost = error
        _server.cache_clear()
    reason = f": {lost}" if lost else ""
    raise KdError(f"the fresh process of kdkit.testing ended without an answer{reason}", "its last output is above, or in the terminal that runs Jupyter") from lost


@functools.cache
def _server(question: str) -> subprocess.Popen[str]:
    """The process that answers one kind of question."""
    # in a session of its own, where an interrupt of the notebook's does not reach it
    server = subprocess.Popen([sys.executable, "-c", _START, json.dumps(sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    atexit.register(server.kill)
    return server


# the answering side


def serve() -> None:
    """Answer questions, a line of JSON each, until there are no more."""
    manager()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    while line := _next():
        about = json.loads(line)
        if about["question"] == "restore":
            zoo.make(about["name"])  # loads what every answer for that model wants
        answers.write(json.dumps(_apart(about)) + "\n")
        answers.flush()


def _next() -> str:
    """The next question; none where there are no more, or nobody asks for long."""
    waits = hasattr(os, "fork") and not select.select([sys.stdin], [], [], IDLE_S)[0]
    return "" if waits else sys.stdin.readline()


def _apart(about: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a child; of this process where the system can't fork."""
    if not hasattr(os, "fork"):
        return _answer(about)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as told:
                json.dump(_answer(about), told)
        except BaseException:
            traceback.print_exc()  # nothing else would show it: the process ends without Python's own cleanup
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        answer = told.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else {"error": "the fresh process ended without an answer"}


def _answer(about: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _loaded(about["module"]) if about["question"] == "load" else _restored(**{key: value for key, value in about.items() if key != "question"})
    except BaseException as error:  # a module may raise SystemExit when it is loaded
        return {"error": describe_exception(error), "seconds": 0.0, "packages": []}


def _loaded(module: str) -> dict[str, Any]:
    before, began = set(sys.modules), time.process_time()
    importlib.import_module(module)
    seconds = time.process_time() - began
    packages = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
    return {"seconds": seconds, "packages": sorted(name for name in packages if not name.startswith("_") and name != module.partition(".")[0])}


def _restored(folder: str, name: str, call: bool, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    skeleton = zoo.make(name)
    model, _ = load(folder, skeleton if canonical(read(folder)["skeleton"].get("class", "")) == path_of(type(skeleton)) else None)
    return {"print": dict(fingerprint(model)), "outputs": outputs(model, zoo.batch(name)) if call else []}

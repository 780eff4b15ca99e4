"""Ctrl-C at the first `%kd` line, at many moments: the next line starts again with all plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="each moment needs a process that has loaded torch and nothing of kdkit's rooms")]

MOMENTS = 10

TRY = """
import contextlib, io, json, os, signal, sys, time
import torch
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "kdkit")

def line():
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        result = shell.run_cell("%kd list")
    return result.error_in_exec or result.error_before_exec, str(result.result)

def whole():
    from kdkit.plugins.manager import manager
    found = {plugin.name: plugin.status for plugin in manager().plugins()}
    return manager().named("kdkit_backends", "cpu").name == "cpu" and len(manager().stages()) > 30 and set(found.values()) == {"ok"}

def answer_of(child):
    reading, writing = os.pipe()
    if not (number := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            answer = child()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        answer = told.read()
    os.waitpid(number, 0)
    return json.loads(answer)

def seconds():
    began = time.perf_counter()
    error, _ = line()
    return time.perf_counter() - began if error is None else str(error)

def interrupted(moment):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    error = None
    try:
        signal.setitimer(signal.ITIMER_REAL, moment)
        error, _ = line()
    except KeyboardInterrupt as stop:  # within IPython itself
        error = stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    again, shown = line()
    return [type(error).__name__, None if again is None else f"{type(again).__name__}: {again}", "prune" in shown, whole()]

whole_line = answer_of(seconds)
count = int(sys.argv[1])
print(json.dumps([whole_line, [answer_of(lambda: interrupted(whole_line * (number + 0.5) / count)) for number in range(count)]]))
"""


def test_an_interrupt_of_the_first_line_leaves_all_plugins_to_the_next():
    done = subprocess.run([sys.executable, "-c", TRY, str(MOMENTS)], capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    seconds, found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(seconds, float), seconds
    assert [each[1:] for each in found] == [[None, True, True]] * MOMENTS, found
    assert "KeyboardInterrupt" in {each[0] for each in found}, "every interrupt came too late"

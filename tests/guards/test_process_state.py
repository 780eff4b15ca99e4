"""Process state: whatever code changes in the process, the snapshot puts it back and names it, and a call that changes nothing costs little."""

from __future__ import annotations

import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
import types
import warnings

import numpy
import pytest
import torch

from kdkit.guards import process_state
from kdkit.guards.process_state import RANDOM, SETTINGS, ProcessState, call_and_put_back

CHANGES = {
    "torch's gradient mode": lambda: torch.set_grad_enabled(False),
    "torch's autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's inference mode": lambda: HELD[-1].__enter__(),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "torch's anomaly mode": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "torch's float32 precision": lambda: torch.set_float32_matmul_precision("medium"),
    "torch's cudnn settings": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch's fused kernels": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "torch's print options": lambda: torch.set_printoptions(precision=2),
    "torch's hooks of all modules": lambda: torch.nn.modules.module.register_module_forward_hook(lambda *given: None),
    "numpy's print options": lambda: numpy.set_printoptions(precision=2),
    "numpy's error handling": lambda: numpy.seterr(all="raise"),
    "the filters of warnings": lambda: warnings.simplefilter("error"),
    "os.environ: HOME, KDKIT_TEST_OF_STATE": lambda: os.environ.update(KDKIT_TEST_OF_STATE="1", HOME="/"),
    "signal handlers": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    "sys.stdout or another stream or hook of sys": lambda: setattr(sys, "stdout", sys.stderr),
    "logging's root level or handlers": lambda: logging.root.addHandler(logging.NullHandler()),
    "the working directory": lambda: os.chdir("/"),
    "sys.path": lambda: sys.path.insert(0, "nowhere"),
    "Python's recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "Python's garbage collector": gc.disable,
    "the locale": lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"),
    "the start method of multiprocessing": lambda: multiprocessing.set_start_method("forkserver", force=True),
    "Python's random state": lambda: random.seed(5),
    "numpy's random state": lambda: numpy.random.seed(5),
    "torch's random state": lambda: torch.manual_seed(5),
}
"""Name that is reported -> a change."""

torch.use_deterministic_algorithms(False)  # the first call imports sympy, which has filters and variables of its own
HELD = [torch.inference_mode(True)]


def values():
    return {setting.name: setting.read() for setting in SETTINGS + RANDOM}


@pytest.fixture(autouse=True)
def as_before():
    before = ProcessState()
    HELD.append(torch.inference_mode(True))
    yield
    before.put_back()


def test_every_setting_has_a_change_here():
    assert [name.partition(":")[0] for name in CHANGES] == [setting.name for setting in SETTINGS + RANDOM if setting.read() is not None]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_put_back_and_named(name):
    before, reported = values(), []
    call_and_put_back(CHANGES[name], reported.extend)
    assert [each for each in reported if each == name or name != "torch's inference mode"] == [name]  # that mode turns gradients off too
    assert values() == before


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_all_changes_at_once_are_put_back_when_the_call_raises(error):
    def change():
        for each in CHANGES.values():
            each()
        raise error

    before, reported = values(), []
    with pytest.raises(error):
        call_and_put_back(change, reported.extend)
    assert set(reported) == set(CHANGES)
    assert values() == before


def test_gradients_work_after_an_inference_mode_that_was_never_left():
    call_and_put_back(CHANGES["torch's inference mode"], lambda changed: None)
    weight = torch.zeros(2, requires_grad=True)
    (weight * 2).sum().backward()
    assert weight.grad.tolist() == [2, 2]


def test_warnings_that_became_errors_are_warnings_again():
    with pytest.warns(UserWarning, match="changed"):
        call_and_put_back(lambda: warnings.simplefilter("error"), lambda changed: warnings.warn("changed", stacklevel=1))


def test_settings_of_the_process_stay_where_only_the_threads_own_are_asked_for():
    state = ProcessState()
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    assert state.put_back(of_process=False) == ["torch's gradient mode"]
    assert torch.get_default_dtype() == torch.float64


def test_what_another_package_sets_up_for_itself_when_it_is_first_imported_stays():
    state = ProcessState()
    sys.modules["a_package_of_this_test"] = types.ModuleType("a_package_of_this_test")
    warnings.filterwarnings("ignore", message="of that package alone")
    warnings.simplefilter("error")
    assert state.put_back("mine") == ["the filters of warnings"]
    assert warnings.filters[0][1].pattern == "of that package alone"
    assert all(found[0] != "error" for found in warnings.filters[:1])
    del sys.modules["a_package_of_this_test"]


def test_an_interrupt_while_state_is_put_back_does_not_keep_it_from_being_put_back(monkeypatch):
    read, stops = process_state.SETTINGS[4].read, [KeyboardInterrupt()]

    def interrupted(self, *given):
        if stops:
            raise stops.pop()
        return put_back(self, *given)

    put_back = ProcessState.put_back
    monkeypatch.setattr(ProcessState, "put_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call_and_put_back(lambda: torch.set_default_dtype(torch.float64), print)
    assert read() == torch.float32


def test_a_call_that_changes_nothing_costs_less_than_a_millisecond():
    def seconds():
        began = time.thread_time()
        call_and_put_back(lambda: None, print)
        return time.thread_time() - began

    assert min(seconds() for _ in range(50)) < 1e-3


def test_asking_for_the_start_method_of_multiprocessing_is_no_change(monkeypatch):
    from multiprocessing import context

    monkeypatch.setattr(context._default_context, "_actual_context", None)
    changes = []
    call_and_put_back(multiprocessing.get_start_method, changes.append)
    assert changes == []

"""Process state: settings of Python and torch that the code of a plugin can change for everybody, put back after each of its calls.

Settings are compared before they are written, so a call that changes nothing costs some tens of microseconds.
"""

from __future__ import annotations

import _signal  # `signal` makes an enum of each handler, which takes a hundred times as long
import builtins
import contextlib
import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy
import torch
from torch.nn.modules import module as torch_module

from kdkit.guards.fused_kernels import read_fused_kernels, set_fused_kernels
from kdkit.guards.torch_modes import TorchModes

Result = TypeVar("Result")


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: in messages.
        read: its value, comparable with ==; None if there is none yet, which counts as no change.
        write: puts a value back; safe to call twice.
        of_thread: other threads have a value of their own.
    """

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]
    of_thread: bool = False


# torch


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)  # without one set, it is the CPU


_inference_modes: list[Any] = []
"""Modes that were entered to replace one that a plugin never left; a mode ends when it is garbage-collected."""


def _set_inference_mode(on: bool) -> None:
    mode = torch.inference_mode(on)
    mode.__enter__()
    _inference_modes.append(mode)


def _set_anomaly_mode(mode: tuple[bool, bool]) -> None:
    torch.autograd.set_detect_anomaly(*mode)


_HOOKS = [name for name in vars(torch_module) if name.startswith("_global_") and isinstance(getattr(torch_module, name), dict)]


def _module_hooks() -> list[dict[int, Any]]:
    return [dict(getattr(torch_module, name)) for name in _HOOKS]


def _set_module_hooks(hooks: list[dict[int, Any]]) -> None:
    for name, before in zip(_HOOKS, hooks, strict=True):
        now = getattr(torch_module, name)
        now.clear()
        now.update(before)


def _cudnn() -> tuple[bool, ...]:
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic


def _set_cudnn(values: tuple[bool, ...]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = values


# Python


def _filters() -> tuple[list[Any], list[Any], Any, Any]:
    return warnings.filters, list(warnings.filters), warnings.showwarning, warnings._showwarnmsg_impl  # type: ignore[attr-defined, return-value]


def _set_filters(value: tuple[list[Any], list[Any], Any, Any]) -> None:
    warnings.filters, filters, warnings.showwarning, warnings._showwarnmsg_impl = value  # type: ignore[attr-defined]
    warnings.resetwarnings()  # so that Python forgets which warnings the filters have let through
    warnings.filters[:] = filters


_SIGNALS = sorted(signal.valid_signals() - {getattr(signal, "SIGCHLD", None)})
"""Without SIGCHLD, which torch's DataLoader handles from its first workers on."""


def _signal_handlers() -> dict[int, Any]:
    return {number: _signal.getsignal(number) for number in _SIGNALS}


def _set_signal_handlers(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():  # no other one may set them
        for number, handler in handlers.items():
            if handler is not None and handler != _signal.getsignal(number):  # None: it was not set from Python
                signal.signal(number, handler)


_STREAMS = ("stdin", "stdout", "stderr", "displayhook", "excepthook", "unraisablehook")


def _set_streams(values: dict[str, Any]) -> None:
    vars(sys).update(values)


def _logging() -> tuple[Any, ...]:
    root = logging.root
    return root.level, root.manager.disable, list(root.handlers), list(root.filters)


def _set_logging(value: tuple[Any, ...]) -> None:
    level, disabled, handlers, filters = value
    logging.root.setLevel(level)
    logging.disable(disabled)
    logging.root.handlers[:], logging.root.filters[:] = handlers, filters


def _environment() -> dict[Any, Any]:
    return dict(os.environ._data)  # type: ignore[attr-defined]  # encoded: to decode each variable takes a hundred times as long


def _set_environment(before: dict[Any, Any]) -> None:
    now = _environment()
    for name in now.keys() - before.keys():
        del os.environ[os.fsdecode(name)]
    os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in before.items() if now.get(name) != value})


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _set_working_directory(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was removed, and no process can enter it
        os.chdir(path)


def _set_path(entries: list[str]) -> None:
    sys.path[:] = entries


def _garbage_collector() -> tuple[bool, tuple[int, ...]]:
    return gc.isenabled(), gc.get_threshold()


def _set_garbage_collector(value: tuple[bool, tuple[int, ...]]) -> None:
    on, threshold = value
    gc.set_threshold(*threshold)
    gc.enable() if on else gc.disable()


FILTERS = Setting("the filters of warnings", _filters, _set_filters)
ENVIRONMENT = Setting("os.environ", _environment, _set_environment)

SETTINGS = (
    Setting("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled, of_thread=True),
    Setting("torch's autocast", TorchModes, TorchModes.put_back, of_thread=True),
    Setting("torch's inference mode", torch.is_inference_mode_enabled, _set_inference_mode, of_thread=True),
    Setting("torch's default device", torch.get_default_device, _set_default_device, of_thread=True),
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch's deterministic algorithms", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    Setting("torch's anomaly mode", lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()), _set_anomaly_mode),
    Setting("torch's float32 precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting("torch's cudnn settings", _cudnn, _set_cudnn),
    Setting("torch's fused kernels", read_fused_kernels, set_fused_kernels),
    Setting("torch's print options", lambda: dict(vars(torch._tensor_str.PRINT_OPTS)), vars(torch._tensor_str.PRINT_OPTS).update),
    Setting("torch's hooks of all modules", _module_hooks, _set_module_hooks),
    Setting("numpy's print options", numpy.get_printoptions, lambda value: numpy.set_printoptions(**value)),
    Setting("numpy's error handling", numpy.geterr, lambda value: numpy.seterr(**value), of_thread=True),
    FILTERS,
    ENVIRONMENT,
    Setting("signal handlers", _signal_handlers, _set_signal_handlers),
    Setting("sys.stdout or another stream or hook of sys", lambda: {name: getattr(sys, name) for name in _STREAMS}, _set_streams),
    Setting("logging's root level or handlers", _logging, _set_logging),
    Setting("the working directory", _working_directory, _set_working_directory),
    Setting("sys.path", lambda: list(sys.path), _set_path),
    Setting("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("Python's garbage collector", _garbage_collector, _set_garbage_collector),
    Setting("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    Setting(
        "the start method of multiprocessing",
        lambda: multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0],  # its default comes first
        lambda value: multiprocessing.set_start_method(value, force=True),
    ),
)
"""All settings, without the random state, which a run with a seed restores itself."""


# random state


def _numpy_state() -> tuple[Any, ...]:
    state: Any = numpy.random.get_state()
    name, keys, *rest = state
    return (name, keys.tobytes(), *rest)


def _set_numpy_state(state: tuple[Any, ...]) -> None:
    name, keys, *rest = state
    numpy.random.set_state((name, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))


def _torch_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_torch_state(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _cuda_states() -> list[bytes] | None:
    return [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_initialized() else None


def _set_cuda_states(states: list[bytes]) -> None:
    torch.cuda.set_rng_state_all([torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in states])


RANDOM = (
    Setting("Python's random state", random.getstate, random.setstate),
    Setting("numpy's random state", _numpy_state, _set_numpy_state),
    Setting("torch's random state", _torch_state, _set_torch_state),
    Setting("CUDA's random state", _cuda_states, _set_cuda_states),
)
"""The states of the global random generators."""


class ProcessState:
    """A snapshot of the settings.

    It is no context manager: one that an interrupt cuts off ends when it is garbage-collected, perhaps in the middle of the next training.

    Args:
        random_state: whether the random generators count.

    >>> state = ProcessState()
    >>> torch.set_default_dtype(torch.float64)
    >>> os.environ["KDKIT_EXAMPLE"] = "1"
    >>> state.put_back()
    ["torch's default dtype", 'os.environ: KDKIT_EXAMPLE']
    >>> torch.get_default_dtype(), "KDKIT_EXAMPLE" in os.environ
    (torch.float32, False)
    """

    def __init__(self, random_state: bool = True):
        self._modules = len(sys.modules)
        self._before = [(setting, setting.read()) for setting in (SETTINGS + RANDOM if random_state else SETTINGS)]
        self._changed: dict[str, None] = {}

    def put_back(self, home: str = "", of_process: bool = True, trusted: bool = False) -> list[str]:
        """Restore the snapshot; safe to call twice.

        Args:
            home: the package whose code ran. Filters for certain warnings stay where other packages were imported for the first time.
            of_process: whether to restore settings that all threads share.
            trusted: whether environment variables stay too that were added while other packages were imported.

        Returns:
            The names of the settings that had changed.
        """
        for setting, before in self._before:
            if before is not None and (of_process or setting.of_thread) and (now := setting.read()) != before:
                before = self._with_imported(setting, before, now, home, trusted)
                if now != before:
                    self._changed.update(dict.fromkeys(_named(setting, before, now)))
                    setting.write(before)
        return list(self._changed)

    def _with_imported(self, setting: Setting, before: Any, now: Any, home: str, trusted: bool) -> Any:
        """The value to restore, with what packages other than `home` may have set up when they were imported."""
        if setting not in ((FILTERS, ENVIRONMENT) if trusted else (FILTERS,)) or not self._imported(home):
            return before
        if setting is ENVIRONMENT:
            return {**now, **before}
        own, filters, *shows = before
        return (own, [*(found for found in now[1] if found not in filters and _is_special(found)), *filters], *shows)

    def _imported(self, home: str) -> bool:
        """Whether packages other than `home` were imported since the snapshot."""
        found = {name for name in list(sys.modules)[self._modules :] if "." not in name}
        return bool(found - {home} - sys.stdlib_module_names)


def _is_special(found: tuple[Any, ...]) -> bool:
    """Whether a filter is about certain messages, modules or warnings of a package, not about all warnings."""
    _, message, category, module, _ = found
    return bool(message or module) or category.__module__ != builtins.__name__


def _named(setting: Setting, before: Any, now: Any) -> list[str]:
    if setting is not ENVIRONMENT:
        return [setting.name]
    return [f"{setting.name}: {', '.join(sorted(os.fsdecode(name) for name in {**before, **now} if before.get(name) != now.get(name)))}"]


def call_and_put_back(
    call: Callable[[], Result],
    report: Callable[[list[str]], object],
    *,
    home: str = "",
    trusted: bool = False,
    random_state: bool = True,
    of_process: Callable[[], bool] = lambda: True,
) -> Result:
    """Call a function, and restore the process state when it returns, raises or is interrupted.

    Args:
        call: the function.
        report: called with the names of the settings that it changed, if there are any, after they were restored.
        home, trusted: as for `ProcessState.put_back`.
        random_state: whether the random generators count.
        of_process: asked after the call, whether to restore settings that all threads share.

    >>> _ = call_and_put_back(lambda: torch.set_grad_enabled(False), print)
    ["torch's gradient mode"]
    """
    state = ProcessState(random_state)
    try:
        return call()
    finally:
        try:
            changed = state.put_back(home, of_process(), trusted)
        except KeyboardInterrupt:
            changed = state.put_back(home, of_process(), trusted)
            raise
        if changed:
            report(changed)

"""The doctor: installed packages, features of the machine, problems, and how to fix them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
from typing import TYPE_CHECKING

from kdkit.display.page import Page
from kdkit.display.table import Table, volatile
from kdkit.plugins.manager import manager

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def examine(shell: InteractiveShell | None) -> Page:
    """Check plugins, widgets, cancellation, int8 and CUDA, and list the installed versions."""
    versions = [
        ["Python", volatile(platform.python_version()), ""],
        *([name, volatile(_version(name)), "" if _version(name) else f"pip install {name}"] for name in distributions()),
    ]
    rows = [*_plugins(), _widgets(shell), _cancelling(shell), _int8(), _cuda()]
    return Page(_findings("what", "found", rows), _findings("distribution", "version", versions))


def _findings(what: str, found: str, rows: list[list[str]]) -> Table:
    """A table with a column "what to do", left out if there is nothing to do."""
    width = 3 if any(row[2] for row in rows) else 2
    return Table([what, found, "what to do"][:width], [row[:width] for row in rows])


def distributions() -> list[str]:
    """kdkit and its dependencies, by distribution name.

    >>> {"kdkit", "torch", "pluggy"} <= set(distributions())
    True
    """
    needed = [line for line in importlib.metadata.requires("kdkit") or () if "extra ==" not in line]
    return ["kdkit", *sorted({re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in needed})]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _plugins() -> list[list[str]]:
    broken = [
        [f"plugin {each.source}", f"{each.status}: {each.reason}", f"update or uninstall {each.distribution or each.name}; or hide it: %kd plugins block {each.name}"]
        for each in manager().problems
    ]
    return broken or [["plugins", f"{sum(each.status == 'ok' for each in manager().plugins())} work", ""]]


def _widgets(shell: InteractiveShell | None) -> list[str]:
    if getattr(shell, "kernel", None) is None:
        return ["widgets", "no kernel: a terminal or plain Python", "progress is shown as a line of text"]
    if importlib.util.find_spec("ipywidgets") is None:
        return ["widgets", "ipywidgets is not installed", "pip install ipywidgets, then restart the kernel"]
    return ["widgets", volatile(f"ipywidgets {_version('ipywidgets')}"), ""]


def _cancelling(shell: InteractiveShell | None) -> list[str]:
    if getattr(shell, "kernel", None) is None:
        return ["stopping a stage", "Ctrl-C", ""]
    version = tuple(int(part) for part in re.findall(r"\d+", _version("ipykernel"))[:2])
    # only these versions handle comms in a separate thread; later ones route them back to the busy shell
    if (7, 0) <= version < (7, 4):
        return ["stopping a stage", volatile("the interrupt button; buttons of widgets work during a cell"), ""]
    return ["stopping a stage", volatile("the interrupt button; buttons of widgets wait until the cell ends"), ""]


def _int8() -> list[str]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    fast = _has_vnni()
    found = "unknown" if fast is None else "8-bit dot products (VNNI or similar)" if fast else "no 8-bit dot products"
    return ["int8 on this CPU", volatile(f"{capability}: {found}"), volatile("" if fast else "int8 saves memory, but may be slow; weights use a reduced range")]


def _has_vnni() -> bool | None:
    try:
        with open("/proc/cpuinfo") as file:
            flags = file.read()
    except OSError:
        return None
    return any(flag in flags for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"))


def _cuda() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return ["CUDA", volatile(f"{torch.cuda.get_device_name()}, torch for CUDA {torch.version.cuda}"), volatile("%kd set --backend cuda")]
    reason = "torch was built without it" if torch.version.cuda is None else "no device, or no matching driver"
    return ["CUDA", volatile(f"not usable: {reason}"), ""]

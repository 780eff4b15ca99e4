"""Energy counters of the machine: RAPL and NVML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch


def rapl(root: Path = Path("/sys/class/powercap")) -> Callable[[], float] | None:
    """A function that returns the joules used so far by all processor packages, from Linux's powercap files; None if they can't be read.

    If a counter is below its first reading, one overflow is assumed.
    """
    domains = [file.parent for file in sorted(root.glob("intel-rapl:*/name")) if _content(file).startswith("package")]
    first = {domain: _content(domain / "energy_uj") for domain in domains}
    if not first or not all(first.values()):
        return None

    def joules() -> float:
        total = 0
        for domain, start in first.items():
            now, end = int(_content(domain / "energy_uj") or start), int(_content(domain / "max_energy_range_uj") or 0)
            total += now - int(start) + (end if now < int(start) else 0)
        return total / 1e6

    return joules


def _content(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def nvml() -> Callable[[], float] | None:
    """A function that returns the joules used so far by the current GPU; None without NVML."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3

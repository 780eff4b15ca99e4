"""What 8-bit arithmetic this machine is fast at."""

from __future__ import annotations

import platform

import torch

_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")


def is_arm() -> bool:
    """Whether the processor is an ARM one."""
    return platform.machine().lower() in ("arm64", "aarch64")


def has_dot_product() -> bool:
    """Whether the processor sums 8-bit products in 32 bits at once (VNNI, AMX, or ARM).

    Without, x86 sums pairs in 16 bits, which overflow: weights must then stay within 7 bits (`reduce_range`).
    """
    if is_arm():
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        return any(capabilities().get(name) for name in _DOT_PRODUCTS)
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return False
    return any(name in flags for name in _DOT_PRODUCTS)


def fastest_layout() -> str:
    """Types of activations and weights: "u8s8" on x86, where s8 x s8 is slower than float; "s8s8" on ARM.

    >>> fastest_layout() in ("u8s8", "s8s8")
    True
    """
    return "s8s8" if is_arm() else "u8s8"

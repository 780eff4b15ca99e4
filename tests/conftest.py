"""What all tests share: one thread, and stages of the test's own that go away with it."""

import os
import signal

import pytest
import torch

from kdkit.guards import cleanup, fused_kernels
from kdkit.plugins.manager import manager

collect_ignore_glob = ["benchmarks/bench_*", "distributions/*", "fixtures/*"]
"""Benchmarks, distributions that tests install, and what tests share; no tests are in them."""

pytest_plugins = ["tests.fixtures.notebook", "tests.fixtures.onnx_zoo", "tests.fixtures.wizard"]

torch.set_num_threads(1)
# a shell starts what runs in its background with interrupts ignored, and tests send them
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def unchanged_process():
    """A test leaves the process as it was: what it changes would decide how later tests end."""
    before = _state()
    yield
    after = _state()
    torch.set_grad_enabled(before["gradients"])
    cleanup.run_cleanups(0)
    fused_kernels.set_fused_kernels(before["fused kernels"])
    torch.set_default_dtype(before["default dtype"])
    os.chdir(before["working directory"])
    assert after == before


def _state():
    return {
        "gradients": torch.is_grad_enabled(),
        "fused kernels": fused_kernels._read(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "working directory": os.getcwd(),
        "interrupt": signal.getsignal(signal.SIGINT),
    }


@pytest.fixture
def offered():
    """Offer stages from a test, as a notebook cell would; they are taken back afterwards."""
    notebook = manager().get_plugin("notebook")
    before = dict(notebook.stages)

    def offer(*stages):
        for stage in stages:
            manager().offer(stage)
        return stages[0] if len(stages) == 1 else stages

    yield offer
    notebook.stages = before
    manager().forget()

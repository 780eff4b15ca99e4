"""Dispatch modes without torch's compiler: they see the same operators, and the compiler stays unloaded."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdkit.guards import dispatch_modes
from kdkit.guards.dispatch_modes import without_compiler


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def operators(mode):
    with mode:
        torch.ones(2) + torch.ones(2)
    return mode.seen


def test_the_mode_sees_the_same_operators(monkeypatch):
    monkeypatch.setattr(dispatch_modes, "sys", SimpleNamespace(modules={}))
    light = without_compiler(Names())
    assert isinstance(light, Names)
    assert type(light) is not Names
    assert operators(light) == operators(Names())


def test_where_the_compiler_is_loaded_torch_keeps_it_away_from_the_mode(monkeypatch):
    monkeypatch.setattr(dispatch_modes, "sys", SimpleNamespace(modules={"torch._dynamo": None}))
    assert type(without_compiler(Names())) is Names


MEASURES = """
import sys, torch
from kdkit import Session
x = torch.randn(32, 3, 8, 8)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
session = Session(net, train=(x, torch.arange(32) % 2), eval=(x, torch.arange(32) % 2))
assert {"accuracy", "macs", "latency", "memory"} <= set(session.head.report), session.head.report
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_measuring_a_version_loads_no_compiler():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", MEASURES], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]

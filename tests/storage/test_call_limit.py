"""A call of a loaded model ends, and the version says when its outputs could not be compared."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from kdkit import Session
from kdkit.storage import call_limit
from kdkit.storage.call_limit import CallTooLarge, limit_call
from kdkit.storage.output_record import compare_outputs, record_outputs

HOSTILE: dict[str, tuple[Any, tuple[int, ...]]] = {
    "a scale factor": (lambda: nn.Upsample(scale_factor=10_000), (1, 1, 512, 512)),
    "padding": (lambda: nn.ConstantPad2d(50_000, 0), (1, 1, 4, 4)),
    "an output size": (lambda: nn.AdaptiveAvgPool2d((100_000, 100_000)), (1, 1, 4, 4)),
    "a pooling window": (lambda: nn.MaxPool2d(1001, stride=1, padding=500), (1, 1, 1024, 1024)),
    "a window of a mean": (lambda: nn.AvgPool2d(1001, stride=1, padding=500), (1, 1, 1024, 1024)),
    "a kernel": (lambda: nn.Conv2d(1, 1, 512, padding=600), (1, 1, 1024, 1024)),
    "a transposed kernel": (lambda: nn.ConvTranspose2d(1, 1, 256, stride=50), (1, 1, 1024, 1024)),
    "a recurrent layer": (lambda: nn.LSTM(64, 1024, 2), (4096, 4, 64)),
    "unfolding": (lambda: nn.Unfold(64), (1, 1, 1024, 1024)),
}


def record(*shape: int) -> dict[str, Any]:
    return {"args": [{"shape": list(shape), "dtype": "float32", "low": 0.0, "high": 1.0}], "kwargs": {}, "outputs": []}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_call_that_takes_too_much_is_noted_and_not_made(what: str) -> None:
    make, shape = HOSTILE[what]
    net, began = make().eval(), time.thread_time()
    assert "its outputs were not compared with those of the saved model: " in compare_outputs(net, record(*shape), "kd.json")
    assert time.thread_time() - began < 5


def test_a_fused_layer_is_called_in_its_parts() -> None:
    net = nn.TransformerEncoderLayer(16, 4, 16, batch_first=True).eval()
    fused = torch.backends.mha.get_fastpath_enabled()
    with patch.object(torch, "_transformer_encoder_layer_fwd", side_effect=AssertionError):
        assert "shapes" in compare_outputs(net, record(1, 8, 16), "kd.json")
    assert torch.backends.mha.get_fastpath_enabled() == fused


@pytest.mark.slow
def test_a_layer_that_runs_again_and_again_stops_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_limit, "SECONDS", 0.3)
    layer = nn.Linear(256, 256)
    net, began = nn.Sequential(*[layer] * 50_000), time.monotonic()
    assert "a call of it takes more than 0.3 s" in compare_outputs(net, record(1024, 256), "kd.json")
    assert time.monotonic() - began < 10


class Keeps(nn.Module):
    """A net whose results stay alive, each of them small."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [x + number for number in range(1000)]
        return torch.stack([each.sum() for each in kept])


class Swallows(nn.Module):
    """A net whose code catches every error."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return torch.zeros(2**40) + x
        except Exception:
            return x


@pytest.mark.slow
@pytest.mark.parametrize("net", [Keeps(), Swallows()])
def test_memory_is_counted_over_all_results_and_errors_that_the_model_catches(net: nn.Module) -> None:
    with pytest.raises(CallTooLarge, match="more than 536,870,912 bytes"), limit_call(net):
        net(torch.zeros(2**18))


@pytest.mark.slow
def test_results_that_are_gone_do_not_count() -> None:
    with limit_call(nn.Identity()):
        for _ in range(300):
            torch.zeros(2**20)


@pytest.mark.slow
def test_ordinary_nets_are_compared() -> None:
    from kdkit.data import Batch

    nets: list[tuple[nn.Module, torch.Tensor]] = [
        (nn.LSTM(8, 64, 2, batch_first=True), torch.randn(2, 100, 8)),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, batch_first=True), 2), torch.randn(2, 64, 32)),
        (nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.randn(2, 3, 224, 224)),
        (nn.Sequential(nn.Embedding(100, 16), nn.Flatten(), nn.LazyLinear(3)), torch.randint(0, 100, (2, 30))),
    ]
    for net, inputs in nets:
        net.eval()(inputs)
        found = record_outputs(net, Batch((inputs,)))
        assert found
        assert compare_outputs(net, found, "kd.json") == ""
        with torch.no_grad():
            next(net.parameters()).mul_(1.5)
        assert "differ" in compare_outputs(net, found, "kd.json")


def test_a_loaded_version_says_that_its_outputs_were_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 3)), example=torch.zeros(1, 1, 8, 8), measures=())
    place = session.save(tmp_path / "m")
    head = json.loads((place / "kd.json").read_text())
    head["outputs"]["args"][0]["shape"] = [1, 1, 1024, 1024]
    (place / "kd.json").write_text(json.dumps(head))
    monkeypatch.setattr(call_limit, "BYTES", 2**20)
    assert any("its outputs were not compared" in note for note in session.load(place).notes)

"""Gradient compression: unbiased rounding, error feedback, and two processes that learn the same from fewer bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from kdkit.training import fit
from kdkit.training.gradient_compression import GradientCompression, quantize_at_random
from kdkit.training.options import LoopOptions
from tests.fixtures.training import Labels, context, net, points, stage_of, weights


@given(some.integers(1, 50), some.floats(1e-6, 1e6), some.integers(0, 999))
@settings(deadline=None)
def test_a_value_becomes_one_of_the_two_levels_beside_it(count, size, seed):
    random = torch.Generator().manual_seed(seed)
    values = size * torch.randn(count, generator=random)
    codes, scale = quantize_at_random(values, random)
    assert ((codes * scale - values).abs() <= scale * (1 + 1e-3)).all()
    assert codes.abs().max() == 127


def test_rounding_at_random_keeps_the_mean():
    random = torch.Generator().manual_seed(0)
    values = torch.tensor([1.0, 0.3, -0.123, 0.0])
    mean = torch.stack([codes * scale for codes, scale in (quantize_at_random(values, random) for _ in range(4000))]).mean(0)
    torch.testing.assert_close(mean, values, atol=3e-4, rtol=0)


def test_values_that_are_not_finite_stay_visible():
    codes, scale = quantize_at_random(torch.tensor([1.0, torch.inf]), torch.Generator())
    assert not torch.isfinite(codes * scale).all()


def test_what_was_sent_and_what_was_left_out_add_up_to_all_gradients():
    """Error feedback: after any number of steps nothing is lost, only late."""
    compression, weight = GradientCompression("int8", 0), nn.Parameter(torch.zeros(20))
    random, sent, given_gradients = torch.Generator().manual_seed(0), torch.zeros(20), torch.zeros(20)
    for _ in range(30):
        gradient = torch.randn(20, generator=random)
        codes, scale = compression._quantized(weight, gradient)
        sent, given_gradients = sent + codes * scale, given_gradients + gradient
    torch.testing.assert_close(sent + compression._residuals[id(weight)], given_gradients, atol=1e-5, rtol=0)


def test_what_compression_left_out_is_not_in_checkpoints_so_such_a_run_cannot_resume():
    assert any("--resume can't continue --compress int8" in line for line in LoopOptions(compress="int8", resume=True).conflicts())
    assert not list(LoopOptions(compress="fp16", resume=True).conflicts())


def test_one_process_sends_nothing_and_trains_as_without():
    plain, compressed = (fit(net(), [stage_of(Labels, epochs=2, compress=kind)], context()) for kind in ("none", "int8"))
    assert torch.equal(weights(plain), weights(compressed))


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


def _in_a_process(kind: str, folder: str) -> None:
    torch.set_num_threads(1)
    run = context()
    model = fit(wide(), [stage_of(Labels, epochs=15, batch_size=8, learning_rate=0.05, optimizer="sgd", compress=kind)], run)
    torch.save((weights(model), run.notes), f"{folder}/{torch.distributed.get_rank()}.pt")


def correct(flat: torch.Tensor) -> float:
    model = wide()
    nn.utils.vector_to_parameters(flat.float(), model.parameters())
    x, y = points()
    return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fewer"), [("fp16", 1.99), ("int8", 3.9), ("powersgd", 1.8)])
def test_two_processes_learn_the_same_from_fewer_bytes(kind: str, fewer: float, tmp_path: Path) -> None:
    from accelerate import debug_launcher

    results = {}
    for each in ("none", kind):
        folder = tmp_path / each
        folder.mkdir()
        debug_launcher(_in_a_process, (each, str(folder)), num_processes=2)
        results[each], other = (torch.load(folder / f"{rank}.pt") for rank in range(2))
        assert torch.equal(results[each][0], other[0]), "the processes have the same weights"
    note = next(note for note in results[kind][1] if note.startswith(f"gradients as {kind}: each process sent"))
    sent, plain = (int(word.replace(",", "")) for word in note.split() if word.replace(",", "").isdigit())
    assert plain / sent > fewer
    assert not any(note.startswith("gradients as") for note in results["none"][1])
    assert correct(results[kind][0]) >= correct(results["none"][0]) - 0.02
    assert not torch.equal(results[kind][0], results["none"][0])

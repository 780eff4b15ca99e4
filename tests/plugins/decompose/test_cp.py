"""decompose cp: sums of products that are known, the tensor whose best approximation does not exist, time, and the stage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import Cancelled, KdError
from kdkit.stages.validation import validate_stage
from kdkit_decompose import cp
from kdkit_decompose.cp import Cp, CpConvolution, balance, degeneracy, fit
from tests.fixtures import zoo
from tests.fixtures.decomposition import CONVOLUTIONS, context, convolution, images, parameters, run_stage


def run(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    return run_stage(Cp(**options), model, batch)


def components(*sizes: int, rank: int, seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, rank, generator=random) for size in sizes]


def rebuilt(factors) -> torch.Tensor:
    return torch.einsum("or,ir,kr->oik", *factors)


def test_the_stage_is_valid():
    assert list(validate_stage(Cp)) == []


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_a_sum_of_products_is_computed_exactly_by_the_three_layers(options):
    layer, x = convolution(**options), torch.randn(2, 4, 9, 10)
    factors = components(6, 4, layer.weight[0, 0].numel(), rank=3)
    layer.weight.data = rebuilt(factors).reshape(layer.weight.shape)
    torch.testing.assert_close(CpConvolution(layer, (3,), tuple(factors)).made()(x), layer(x), atol=1e-4, rtol=1e-4)


def test_known_components_are_found():
    known = rebuilt(components(8, 6, 9, rank=3, seed=1))
    factors, in_time = fit(known, 3, seconds=30, seed=0)
    assert in_time
    assert torch.linalg.norm(rebuilt(factors) - known) < 0.01 * torch.linalg.norm(known)


def test_balanced_components_have_vectors_of_equal_norms_and_the_same_sum():
    factors = components(5, 4, 9, rank=3)
    factors[0] *= 100
    even = balance(tuple(factors))
    torch.testing.assert_close(rebuilt(even), rebuilt(factors), rtol=1e-4, atol=1e-3)
    norms = torch.stack([factor.norm(dim=0) for factor in even])
    torch.testing.assert_close(norms, norms[:1].expand(3, -1))


def border_tensor() -> torch.Tensor:
    """a∘a∘b + a∘b∘a + b∘a∘a has rank 3, but two components come as near as one likes, growing without bound (de Silva, Lim, 2008)."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    return sum(torch.einsum("o,i,k->oik", *each) for each in ((a, a, b), (a, b, a), (b, a, a)))


def test_components_that_cancel_each_other_are_fitted_again_with_a_penalty(monkeypatch):
    monkeypatch.setattr(cp, "PENALTIES", (1e-12,))
    wild, _ = fit(border_tensor(), 2, seconds=30, seed=1)
    monkeypatch.undo()
    tame, _ = fit(border_tensor(), 2, seconds=30, seed=1)
    assert degeneracy(wild) > cp.DEGENERATE >= degeneracy(tame)
    assert torch.linalg.norm(rebuilt(tame) - border_tensor()) < 0.6 * torch.linalg.norm(border_tensor())


def test_a_fit_ends_with_its_time_and_says_so():
    factors, in_time = fit(torch.randn(32, 32, 9, generator=torch.Generator().manual_seed(0)), 40, seconds=1e-9, seed=0)
    assert not in_time
    assert all(factor.isfinite().all() for factor in factors)
    _, notes = run(zoo.cnn(), zoo.batch("cnn"), seconds=1e-9)
    assert any(note.startswith("the time ended before the fit of stem, blocks.0.conv1") for note in notes)


def test_cancelling_ends_a_fit():
    def tick():
        raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        fit(torch.randn(8, 8, 9), 4, seconds=30, seed=0, tick=tick)


def test_layers_whose_components_remain_degenerate_are_left_alone(monkeypatch):
    model, batch = zoo.cnn(), zoo.batch("cnn")
    values = iter([1e6, *(1.0 for _ in range(4))])
    monkeypatch.setattr(cp, "fit", lambda weight, rank, *rest: (tuple(components(*weight.shape, rank=rank)), True))
    monkeypatch.setattr(cp, "degeneracy", lambda factors: next(values))
    small, notes = run(model, batch)
    assert isinstance(small.stem, nn.Conv2d)
    assert isinstance(small.blocks[0].conv1, nn.Sequential)
    assert "skipped stem: its components remain degenerate: their squared norms are 1000000 times the square of their sum" in notes
    monkeypatch.setattr(cp, "degeneracy", lambda factors: 1e6)
    with pytest.raises(KdError, match="the components of every layer remain degenerate"):
        run(model, batch)


@pytest.mark.parametrize("options", [{}, {"rank": 8}, {"ratio": 0.4, "aware": False}])
def test_a_net_gets_smaller_and_is_called_as_before(options):
    model, batch = zoo.cnn(), zoo.batch("cnn")
    small, notes = run(model, batch, **options)
    first, depthwise, last = small.blocks[0].conv1
    assert (first.kernel_size, depthwise.kernel_size, last.kernel_size) == ((1, 1), (3, 3), (1, 1))
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels
    assert parameters(small) < parameters(model)
    assert batch.call(small).shape == batch.call(model).shape
    assert "decomposed" in notes[-1]
    predicted = Cp(**options).forecast(zoo.cnn(), context(batch)).model
    assert [value.shape for value in predicted.parameters()] == [value.shape for value in small.parameters()]


def test_more_components_keep_more():
    model, batch = zoo.cnn(), zoo.batch("cnn")
    truth = batch.call(model)
    errors = [float((batch.call(run(model, batch, rank=rank, aware=False)[0]) - truth).norm().detach()) for rank in (2, 40)]
    assert errors[1] < errors[0]


def test_aware_components_keep_the_output_better_on_new_images():
    layer, x = convolution(8, 16, padding=1), images(32, 8)
    model, batch = nn.Sequential(layer).eval(), Batch((x[:16],))
    plain, aware = (torch.linalg.norm(run(model, batch, rank=10, aware=aware)[0](x[16:]) - layer(x[16:])) for aware in (False, True))
    assert aware < 0.8 * plain


def test_two_ways_to_choose_the_rank_are_refused():
    with pytest.raises(KdError, match="--ratio and --rank each choose the ranks"):
        Cp.build("decompose cp", {"ratio": 0.5, "rank": 3})

"""distill variational: the density written out, the variance that is learned, its beginning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdkit_distill.feature.variational import LEAST_VARIANCE, Prediction, Variational, negative_log_likelihood
from tests.fixtures import zoo
from tests.fixtures.lessons import context, numbers, of_zoo, taught


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 3, 2, 2)])
def test_it_is_the_formula_written_out(shape: tuple[int, ...]) -> None:
    mean, teacher, variance = numbers(*shape), numbers(*shape, seed=1), numbers(3, seed=2).exp()
    found = negative_log_likelihood(mean, variance, teacher)
    expected = torch.empty_like(mean)
    for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        v = variance[place[1] if len(shape) == 4 else place[-1]].item()
        m, t = mean[tuple(place)].item(), teacher[tuple(place)].item()
        expected[tuple(place)] = 0.5 * ((m - t) ** 2 / v + math.log(v))
    expected = expected.mean(-1) if len(shape) == 3 else expected.flatten(1).mean(1)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6) if found.dim() == 1 else torch.allclose(found, expected)


def test_it_is_torchs_gaussian_loss() -> None:
    mean, teacher, variance = numbers(6, 3), numbers(6, 3, seed=1), numbers(3, seed=2).exp()
    reference = torch.nn.functional.gaussian_nll_loss(mean, teacher, variance.expand(6, 3))
    assert negative_log_likelihood(mean, variance, teacher).mean().item() == pytest.approx(reference.item(), rel=1e-12)


def test_the_best_variance_is_the_squared_error_that_is_left() -> None:
    mean, teacher = numbers(50, 1), numbers(50, 1, seed=1)
    error = (mean - teacher).square().mean()
    values = [negative_log_likelihood(mean, (error * factor).view(1), teacher).mean() for factor in (0.9, 1.0, 1.1)]
    assert values[1] == min(values)
    assert values[1].item() == pytest.approx(0.5 * (1 + math.log(error.item())), rel=1e-9)


def test_a_prediction_that_is_right_has_no_gradient_but_the_variance_has() -> None:
    """A right prediction's value is half the log of the variance, and not zero: it may still be more certain."""
    mean, variance = numbers(4, 3).requires_grad_(), torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    loss = negative_log_likelihood(mean, variance, mean.detach())
    loss.sum().backward()
    assert torch.allclose(loss, torch.full_like(loss, 0.5 * math.log(2)))
    assert (mean.grad == 0).all()
    assert (variance.grad > 0).all()


def test_variances_begin_at_five_and_never_reach_zero() -> None:
    made = Prediction((2, 4, 3, 3), (2, 6, 3, 3)).double()
    assert torch.allclose(made.variance, torch.full((6,), 5.0, dtype=torch.float64), atol=1e-5)
    with torch.no_grad():
        made.scale.fill_(-1e4)
    assert torch.allclose(made.variance, torch.full((6,), LEAST_VARIANCE, dtype=torch.float64))


@pytest.mark.slow
def test_mean_and_variance_train() -> None:
    run = context(of_zoo("cnn"), zoo.cnn())
    stage, student = Variational(labels=False, learning_rate=0.05, epochs=20), zoo.depthwise()
    kept: dict[str, Tensor] = {}
    made: list[Prediction] = []

    class Watched(Variational):
        def modules(self, features, context):  # type: ignore[no-untyped-def]
            found = super().modules(features, context)
            made.extend(found.values())
            kept.update({name: weight.detach().clone() for name, weight in found.named_parameters()})
            return found

    reported = taught(Watched(**stage.changed()), student, run)
    assert reported[-1]["loss"] < reported[0]["loss"]
    assert not any(torch.equal(weight, kept[f"{number}.{name}"]) for number, module in enumerate(made) for name, weight in module.named_parameters())
    assert made[0].variance.mean() < 5


def test_it_works_across_maps_and_tokens() -> None:
    made = Prediction((2, 4, 3, 3), (2, 10, 6))
    assert made(torch.randn(2, 4, 3, 3), torch.randn(2, 10, 6)).shape == (2,)

"""decompose separable: against the singular vectors of each channel, and least squares done slowly."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

from kdkit.data import Batch
from kdkit.stages.validation import validate_stage
from kdkit_decompose.separable import PointwiseFit, Separable, SeparableConvolution, factorize
from tests.fixtures import zoo
from tests.fixtures.decomposition import CONVOLUTIONS, context, convolution, images, parameters, run_stage


def test_the_stage_is_valid():
    assert list(validate_stage(Separable)) == []


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_with_all_kernels_the_output_is_the_same(options):
    layer, x = convolution(**options), torch.randn(2, 4, 9, 10)
    torch.testing.assert_close(SeparableConvolution(layer, (6,)).made()(x), layer(x), atol=1e-5, rtol=1e-4)


@given(some.integers(1, 4), some.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_the_error_is_what_the_singular_values_of_each_channel_leave_out(multiplier, seed):
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(seed))
    depthwise, pointwise = factorize(weight, multiplier)
    rebuilt = torch.einsum("oim,imhw->oihw", pointwise, depthwise)
    left_out = sum((numpy.linalg.svd(weight[:, channel].flatten(1).numpy(), compute_uv=False)[multiplier:] ** 2).sum() for channel in range(5))
    assert float((weight - rebuilt).square().sum()) == pytest.approx(left_out, abs=1e-3)


def test_a_net_becomes_plain_separable_convolutions():
    model, batch = zoo.cnn(), zoo.batch("cnn")
    small, notes = run_stage(Separable(), model, batch)
    depthwise, pointwise = small.blocks[0].conv1
    assert (depthwise.groups, depthwise.kernel_size, pointwise.kernel_size) == (16, (3, 3), (1, 1))
    assert parameters(small.blocks) == 4 * (16 * 9 + 16 * 16) + parameters(model.blocks) - 4 * 16 * 16 * 9
    assert "5 layers decomposed, rank 1" in notes[-1]
    predicted = Separable().forecast(zoo.cnn(), context(batch)).model
    assert [value.shape for value in predicted.parameters()] == [value.shape for value in small.parameters()]


def test_more_kernels_keep_more():
    model, batch = zoo.cnn(), zoo.batch("cnn")
    truth = batch.call(model)
    errors = [float((batch.call(run_stage(Separable(multiplier=multiplier, aware=False), model, batch)[0]) - truth).norm().detach()) for multiplier in (1, 2, 4)]
    assert errors[0] > errors[1] > errors[2]


def test_the_fit_is_damped_least_squares():
    layer, x = convolution(4, 6, padding=1), images(4)
    replacement = SeparableConvolution(layer, (1,))
    fit = PointwiseFit(replacement)
    with torch.no_grad():
        for part in x.split(3):
            fit.add(part, layer(part))
        features = fit.depthwise(x).movedim(1, -1).flatten(0, -2).double().numpy()
        targets = (layer(x) - layer.bias.view(-1, 1, 1)).movedim(1, -1).flatten(0, -2).double().numpy()
    damping = 1e-3 * (features**2).sum(0).mean()
    start = replacement.made()[1].weight.detach().flatten(1).double().numpy()
    rows = numpy.concatenate([features, damping**0.5 * numpy.eye(4)])
    expected = numpy.linalg.lstsq(rows, numpy.concatenate([targets, damping**0.5 * start.T]), rcond=None)[0].T
    numpy.testing.assert_allclose(fit.solve().numpy(), expected, atol=1e-4)


def test_the_fit_keeps_the_output_better_on_new_images():
    layer, x = convolution(8, 16, padding=1), images(32, 8)
    model, batch = nn.Sequential(layer).eval(), Batch((x[:16],))
    plain, aware = (torch.linalg.norm(run_stage(Separable(aware=aware), model, batch)[0](x[16:]) - layer(x[16:])) for aware in (False, True))
    assert aware < 0.8 * plain


def test_a_layer_that_no_batch_reaches_keeps_its_singular_vectors():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = convolution(4, 8), convolution(4, 8)

        def forward(self, x):
            return self.used(x)

    small, _ = run_stage(Separable(), Spare().eval(), Batch((torch.randn(2, 4, 8, 8),)))
    assert torch.equal(small.spare[1].weight, SeparableConvolution(convolution(4, 8), (1,)).made()[1].weight)


def test_kernels_of_one_position_and_groups_are_left_alone():
    _, notes = run_stage(Separable(layers=("stem", "expand", "depthwise")), zoo.depthwise(), zoo.batch("depthwise"))
    assert "skipped expand.0: a kernel of one position" in notes
    assert "skipped depthwise.0: its channels are in groups" in notes

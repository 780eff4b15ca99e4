"""decompose linear: convolutions of one position or of all of the input are linear layers, and become convolutions again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.stages.validation import validate_stage
from kdkit_decompose.linear import AsLinear, LinearConvolution, as_convolution, as_linear
from tests.fixtures import zoo
from tests.fixtures.decomposition import context, convolution, run_stage


def run(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    return run_stage(AsLinear(**options), model, batch)


def head() -> nn.Module:
    """A net that ends with a convolution over all of its input, as those that were written without linear layers do."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 6, (3, 4)), nn.ReLU(), nn.Conv2d(6, 5, 1, bias=False), nn.Flatten()).eval()


IMAGES = Batch((torch.randn(4, 3, 7, 9, generator=torch.Generator().manual_seed(0)),))


def test_the_stage_is_valid():
    assert list(validate_stage(AsLinear)) == []


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"bias": False}])
def test_a_convolution_of_1x1_gives_the_same_as_a_linear_layer(kind, options):
    layer = kind(4, 6, 1, **options)
    x = torch.randn(2, 4, *(5 for _ in layer.kernel_size))
    torch.testing.assert_close(as_linear(layer)(x), layer(x))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_kernel_as_large_as_the_input_gives_the_same_as_a_linear_layer(kind):
    layer = kind(4, 6, 3)
    x = torch.randn(2, 4, *(3 for _ in layer.kernel_size))
    torch.testing.assert_close(as_linear(layer)(x), layer(x))
    with pytest.raises(ValueError, match="all of the input"):
        as_linear(layer)(torch.randn(2, 4, *(5 for _ in layer.kernel_size)))


def test_a_net_gives_the_same_with_plain_linear_layers_and_what_slides_is_named():
    model, notes = run(head(), IMAGES)
    torch.testing.assert_close(IMAGES.call(model), IMAGES.call(head()))
    assert [type(model[index]) for index in (0, 2, 4)] == [nn.Conv2d, LinearConvolution, LinearConvolution]
    assert [(type(model[index][1]), model[index][1].weight.shape) for index in (2, 4)] == [(nn.Linear, (6, 96)), (nn.Linear, (5, 6))]
    assert notes == ["skipped 0: its kernel slides over several positions", "as linear layers: 2, 4"]


def test_names_of_layers_are_recorded():
    about = context(IMAGES)
    model = AsLinear().apply(head(), about)
    assert about.renamed == {"2": "2.1", "4": "4.1"}
    AsLinear(to="convolution").apply(model, about)
    assert about.renamed == {"2": "2.1", "4": "4.1", "2.1": "2", "4.1": "4"}


def test_there_and_back_again_is_the_same_net_with_the_values_of_the_linear_layers():
    model, _ = run(head(), IMAGES)
    with torch.no_grad():
        model[4][1].weight.mul_(2)
    back, notes = run(model, IMAGES, to="convolution")
    expected = head()
    with torch.no_grad():
        expected[4].weight.mul_(2)
    assert repr(back) == repr(expected)
    assert all(torch.equal(one, other) for one, other in zip(back.parameters(), expected.parameters(), strict=True))
    assert notes == ["as convolutions again: 2, 4"]


def test_flags_dtype_and_mode_stay():
    layer = convolution(4, 6, kernel_size=1).to(torch.bfloat16).train()
    layer.weight.requires_grad_(False)
    for made in (as_linear(layer), as_convolution(as_linear(layer))):
        weight = next(value for name, value in made.named_parameters() if name.endswith("weight"))
        assert (weight.dtype, weight.requires_grad, made.training) == (torch.bfloat16, False, True)


def test_padded_kernels_and_groups_are_left_alone():
    net = nn.Sequential(nn.Conv2d(4, 4, 1, padding=1), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, padding="same")).eval()
    model, notes = run(net, Batch((torch.randn(2, 4, 5, 5),)))
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.Conv2d, LinearConvolution]
    assert notes[:2] == ["skipped 0: its input is padded", "skipped 1: its channels are in groups"]


def test_nothing_to_write_is_an_error():
    with pytest.raises(KdError, match="no convolution has a kernel of 1x1 or as large as its input"):
        run(nn.Sequential(nn.Conv2d(4, 4, 3)), Batch((torch.randn(2, 4, 5, 5),)))
    assert list(AsLinear(to="convolution").check(zoo.cnn(), context(zoo.batch("cnn")))) == ["it has no convolution that decompose linear has written as linear"]


def test_a_linear_layer_that_became_another_one_is_not_written_back():
    model, _ = run(head(), IMAGES)
    model[2][1] = nn.Sequential(nn.Linear(96, 2), nn.Linear(2, 6))
    back, notes = run(copy.deepcopy(model), IMAGES, to="convolution")
    assert [type(back[index]) for index in (2, 4)] == [LinearConvolution, nn.Conv2d]
    assert notes[0] == "skipped 2: its linear layer is a Sequential now"
    with pytest.raises(KdError, match="nothing to write back"):
        run(nn.Sequential(model[2]), Batch((torch.randn(2, 8, 3, 4),)), to="convolution")

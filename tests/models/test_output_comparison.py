"""Output comparison: differences that rounding explains, and others."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from kdkit.data import Batch
from kdkit.models import find_difference, rounding_tolerance
from kdkit.models.output_comparison import output_tensors, relative_difference


class Returns(nn.Module):
    """Returns what a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


X = Batch((torch.linspace(1, 2, 12).reshape(4, 3),))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_tolerance_is_half_of_the_digits_of_the_coarsest_dtype(dtype):
    assert rounding_tolerance([torch.float64, dtype, torch.int64]) == pytest.approx(math.sqrt(torch.finfo(dtype).eps))


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.int8, 2**-7), (torch.uint8, 2**-3)])
def test_packed_weights_are_rounded_to_their_bits(dtype, epsilon):
    assert rounding_tolerance([torch.float32, dtype]) == pytest.approx(math.sqrt(epsilon))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_in_another_dtype_differs_by_rounding_only(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))
    other = Returns(nn.Sequential(*net).to(dtype))
    plain = nn.Sequential(*[nn.Linear(3, 64), nn.GELU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)])
    plain.load_state_dict({name: value.float() for name, value in net.state_dict().items()})
    cast = Returns(lambda x: other.function(x.to(dtype)))
    cast.inner = net
    assert find_difference(plain, cast, X) == ""


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda x: {"logits": x * 1.001, "ids": x.long()}, "output.logits differs by 0.001 of its largest value; rounding explains 3e-04"),
        (lambda x: {"logits": x, "ids": x.long() + 1}, "100% of output.ids differ"),
        (lambda x: {"logits": x}, "output.ids is missing"),
        (lambda x: {"logits": x[:, :2], "ids": x.long()}, "output.logits has shape (4, 2) instead of (4, 3)"),
        (lambda x: {"logits": x / (x - 2), "ids": x.long()}, "output.logits differs by inf"),
        (lambda x: {"logits": x + 1e-6, "ids": x.long()}, ""),
    ],
)
def test_the_output_that_differs_is_named(changed, says):
    found = find_difference(Returns(lambda x: {"logits": x, "ids": x.long()}), Returns(changed), X)
    assert found.startswith(says) if says else found == ""


def test_models_whose_outputs_change_from_call_to_call_are_not_compared():
    counter = iter(range(10))
    assert find_difference(Returns(lambda x: x + next(counter)), Returns(lambda x: x), X) == ""


def test_a_batch_that_does_not_fit_the_model_compares_nothing():
    assert find_difference(nn.Linear(7, 2), nn.Linear(3, 2), X) == ""


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.floats(-0.5, 0.5))
def test_the_difference_is_relative_to_the_largest_magnitude(values, share):
    want = torch.tensor(values, dtype=torch.float64)
    largest = float(want.abs().max().clamp_min(1e-4))
    assert relative_difference(want, want + share * largest) == pytest.approx(abs(share), abs=1e-9)


def test_values_that_are_not_finite_must_be_in_the_same_places():
    want = torch.tensor([1.0, -torch.inf, torch.nan])
    assert relative_difference(want, want.clone()) == 0
    assert relative_difference(want, torch.tensor([1.0, torch.inf, torch.nan])) == math.inf
    assert relative_difference(want, torch.tensor([1.0, 0.0, torch.nan])) == math.inf


def test_tensors_are_found_in_any_structure():
    found = dict(output_tensors({"a": [torch.zeros(1), {"b": torch.ones(1)}], "text": "x", "none": None}))
    assert set(found) == {"output.a.0", "output.a.1.b"}

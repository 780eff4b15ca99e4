"""Weights: spreads as numpy gives them, over common ranges, and what can't be looked at is told."""

from __future__ import annotations

import numpy
import pytest
import torch
import torch.nn.utils.prune
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kdkit
from kdkit.errors import KdError
from kdkit.views import Weights
from kdkit.views.sensitivity import rounded
from kdkit.views.weights import RANGES, WeightHistogram, compare_weights

NUMBERS = st.lists(st.floats(-100, 100, width=32).map(lambda value: value if abs(value) > 1e-30 else 0.0), min_size=1, max_size=40)
"""Weights without subnormal ranges, over which numpy makes no 60 bins of float32."""


@pytest.mark.slow
@given(NUMBERS, NUMBERS)
def test_both_spreads_are_what_numpy_gives_over_common_edges(before: list[float], after: list[float]) -> None:
    found = WeightHistogram.of("", {"@a": {"w": torch.tensor([before])}, "@b": {"w": torch.tensor([after])}})
    edges = numpy.histogram_bin_edges(before + after, RANGES)
    assert found.edges == pytest.approx(edges)
    for values, spread in zip((before, after), found.spreads, strict=True):
        array = numpy.array(values, "float32")
        counts, _ = numpy.histogram(array, RANGES, (min(before + after), max(before + after)))
        assert spread.shares == pytest.approx(counts / len(array))
        assert sum(spread.shares) == pytest.approx(1)
        assert (spread.low, spread.high) == (array.min(), array.max())
        assert spread.mean == pytest.approx(array.astype("float64").mean(), abs=1e-9)
        assert spread.deviation == pytest.approx(array.astype("float64").std(), abs=1e-9)
        assert spread.zeros == (array == 0).mean()
        assert spread.distinct == spread.channel_distinct == len(set(array.tolist()))


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).eval()


def test_biases_and_norms_are_no_weights_and_all_layers_count_together() -> None:
    found = compare_weights([("@base", net())])
    assert found.spreads[0].count == 4 * 9 + 16 * 3
    assert compare_weights([("@base", net())], "3").spreads[0].count == 48
    assert found.summary.startswith("weights of all layers")


def test_quantized_weights_have_few_values_a_channel() -> None:
    model = net()
    model[3].weight.data = rounded(model[3].weight.data, bits=3)
    spread = compare_weights([("@q", model)], "3").spreads[0]
    assert spread.channel_distinct is not None
    assert spread.distinct is not None
    assert spread.channel_distinct <= 7 < spread.distinct <= 3 * 7


def test_pruned_weights_show_their_zeros() -> None:
    model = net()
    model[3].weight.data[:, :12] = 0
    before, after = compare_weights([("@base", net()), ("@pruned", model)], "3").spreads
    assert (before.zeros, after.zeros) == (0, 0.75)


def test_masks_that_are_pending_count_as_zeros() -> None:
    model = net()
    nn.utils.prune.l1_unstructured(model[3], "weight", 0.25)
    assert compare_weights([("@masked", model)], "3").spreads[0].zeros == 0.25


def test_a_layer_of_one_version_alone_is_shown_with_a_note() -> None:
    found = compare_weights([("@base", net()), ("@other", nn.Sequential(nn.Linear(2, 2)))], "3")
    assert [spread.version for spread in found.spreads] == ["@base"]
    assert found.notes == ("@other: pattern '3' fits no module of the model",)
    assert "note: @other: " in repr(found)
    assert "@other" in found._repr_html_()
    with pytest.raises(KdError, match="'conv9' fits no module"):
        compare_weights([("@base", net()), ("@other", net())], "conv9")
    with pytest.raises(KdError, match="there are no weights to show in 1"):
        compare_weights([("@base", net())], "1")


def test_packed_weights_are_shown_as_the_numbers_they_stand_for() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    packed = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})
    before, after = compare_weights([("@base", plain), ("@int8", packed)]).spreads
    assert after.count == before.count == 32
    assert after.low == pytest.approx(before.low, abs=0.01)
    assert compare_weights([("@base", plain), ("@int8", packed)], "0").spreads[1].count == 32


def test_codes_that_nothing_explains_are_reported_and_left_out() -> None:
    model = net()
    model[3].weight = nn.Parameter(torch.zeros(3, 16, dtype=torch.int8), requires_grad=False)
    found = compare_weights([("@codes", model)])
    assert found.spreads[0].count == 36
    assert found.notes == ("@codes: 3.weight is packed as Tensor and can't be read: its elements are codes of int8",)


def test_numbers_that_are_none_are_left_out_and_equal_ones_have_a_picture() -> None:
    found = WeightHistogram.of("", {"@a": {"w": torch.tensor([[2.0, float("nan"), 2.0, float("inf")]])}})
    assert (found.spreads[0].count, found.edges[0], found.edges[-1]) == (2, 1.5, 2.5)
    assert "<svg" in found._repr_html_()


def test_too_many_to_count_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdkit.views.weights.COUNTED", 10)
    found = compare_weights([("@base", net())])
    assert (found.spreads[0].distinct, found.spreads[0].channel_distinct) == (None, None)
    assert "n/a" in repr(found)


@pytest.mark.slow
def test_a_session_compares_the_first_with_the_head_and_tells_what_an_onnx_version_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    held = kdkit.Session(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)), eval=(x, x.argmax(1)), measures=("parameters",))
    assert [spread.version for spread in held.show(Weights()).spreads] == ["@base"]
    held.run("prune channels --ratio 0.5", label="slim")
    assert [(spread.version, spread.count) for spread in held.show(Weights()).spreads] == [("@base", 128), ("@slim", 64)]
    held.run("convert onnx", label="onnx")
    found = held.show(Weights(before="@slim", after="@onnx"))
    assert [spread.version for spread in found.spreads] == ["@slim"]
    assert "note: @onnx is an onnxruntime graph" in repr(found)
    with pytest.raises(KdError, match="@onnx is an onnxruntime graph"):
        held.show(Weights(before="@onnx", after="@onnx"))

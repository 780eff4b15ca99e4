"""Calibration: ranges of activations, against naive ones over all values at once."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdkit import Batch, Context, KdError
from kdkit.backends.onnx.export import to_onnx
from kdkit.tasks import Classification
from kdkit_quantize.calibration import Histogram, Range, calibrate, divergence, entropy_threshold
from tests.fixtures import zoo

values = arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e3, 1e3, width=32))


def seen(kind, parts, **options):
    made = kind(**options)
    for part in parts:
        made.update(part)
    return made


@pytest.mark.slow
@given(values, st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=60, deadline=None)
def test_ranges_and_histograms_are_the_same_however_the_data_is_cut_and_ordered(data, cuts):
    parts = [part for part in np.split(data, sorted(min(cut, len(data)) for cut in cuts)) if part.size]
    whole, cut, turned = seen(Histogram, [data], bins=16), seen(Histogram, parts, bins=16), seen(Histogram, parts[::-1], bins=16)
    for other in (cut, turned):
        assert np.array_equal(whole.counts, other.counts)
        assert whole.exponent == other.exponent
    for method in ("minmax", "entropy", "percentile"):
        assert whole.clip(method) == cut.clip(method) == turned.clip(method)
    assert seen(Range, parts).clip("minmax") == (data.min(), data.max())


@pytest.mark.slow
@given(values)
@settings(max_examples=60, deadline=None)
def test_a_histogram_counts_every_value_in_its_own_bin(data):
    made = seen(Histogram, np.split(data, range(1, len(data))), bins=16)
    naive = [0] * 32
    for value in data:
        naive[min(31, math.floor(float(value) / made.width) + 16)] += 1
    assert made.counts.tolist() == naive


def test_memory_does_not_grow_with_the_data():
    made = Histogram()
    random = np.random.default_rng(0)
    for scale in (1, 10, 1000):
        made.update(random.normal(size=50_000).astype(np.float32) * scale)
    assert made.counts.nbytes == 2 * made.bins * 8
    assert {name for name, value in vars(made).items() if isinstance(value, np.ndarray)} == {"counts"}
    assert made.counts.sum() == 150_000


def test_a_tensor_of_zeros_has_an_empty_range():
    made = seen(Histogram, [np.zeros(5, np.float32)])
    for method in ("minmax", "percentile", "entropy"):
        assert made.clip(method) == (0, 0)


@pytest.mark.parametrize("odd", [np.inf, np.nan])
def test_what_is_not_finite_is_refused(odd):
    with pytest.raises(ValueError, match="not finite"):
        Range().update(np.array([1.0, odd]))


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_leave_out_at_most_their_share_on_either_side_and_a_bin_less_would_be_too_much(percentile):
    data = np.random.default_rng(1).normal(size=20_011).astype(np.float32)
    made = seen(Histogram, [data])
    low, high = made.clip("percentile", percentile)
    cut = (100 - percentile) / 200 * data.size
    assert (data < low).sum() <= cut < (data < low + made.width).sum()
    assert (data >= high).sum() <= cut < (data >= high - made.width).sum()
    assert made.clip("percentile", 100.0) == (data.min(), data.max())


def naive_divergence(magnitudes: list[int], kept: int, levels: int) -> float:
    """KL(P || Q) as the paper tells it, in loops."""
    inside, cut = magnitudes[:kept], sum(magnitudes[kept:])
    reference = [*inside[:-1], inside[-1] + cut]
    coarse = [0.0] * kept
    for level in range(levels):
        bins = [index for index in range(kept) if index * levels // kept == level]
        filled = [index for index in bins if reference[index] > 0]
        for index in filled:
            coarse[index] = sum(inside[other] for other in bins) / len(filled)
    total, spread, result = sum(reference), sum(coarse), 0.0
    for want, got in zip(reference, coarse, strict=True):
        if want > 0:
            q = max(got / spread, 1e-12) if spread else 1e-12
            result += want / total * math.log(want / total / q)
    return result


@pytest.mark.slow
@given(st.lists(st.integers(0, 100), min_size=8, max_size=40).filter(any), st.integers(2, 6))
@settings(max_examples=80, deadline=None)
def test_the_entropy_threshold_is_the_naive_one(magnitudes, levels):
    used = max(index for index, count in enumerate(magnitudes) if count) + 1
    candidates = range(levels, used + 1)
    kept = entropy_threshold(np.array(magnitudes), levels, step=1)
    if used <= levels:
        assert kept == used
        return
    naive = [naive_divergence(magnitudes, candidate, levels) for candidate in candidates]
    assert divergence(np.array(magnitudes), kept, levels) == pytest.approx(min(naive), abs=1e-9)
    for candidate, want in zip(candidates, naive, strict=True):
        assert divergence(np.array(magnitudes), candidate, levels) == pytest.approx(want, abs=1e-9)


def test_entropy_cuts_a_lone_outlier_and_keeps_an_even_spread():
    random = np.random.default_rng(2)
    bell = random.normal(size=50_000).astype(np.float32)
    low, high = seen(Histogram, [bell, np.array([60.0], np.float32)]).clip("entropy")
    assert 2 < high < 30
    assert -30 < low < -2
    even = seen(Histogram, [random.uniform(-1, 1, 50_000).astype(np.float32)]).clip("entropy")
    assert even == pytest.approx((-1, 1), abs=0.05)


def test_the_zeros_of_a_relu_do_not_hide_the_rest():
    random = np.random.default_rng(3)
    positive = np.abs(random.normal(size=20_000)).astype(np.float32)
    _, alone = seen(Histogram, [positive]).clip("entropy")
    _, among_zeros = seen(Histogram, [positive, np.zeros(500_000, np.float32)]).clip("entropy")
    assert among_zeros == pytest.approx(alone, rel=0.05)


@pytest.mark.slow
def test_calibrating_sees_the_real_activations_whatever_the_batches():
    model, batch = zoo.cnn(), zoo.batch("cnn", items=19)
    onnx = to_onnx(model, batch)
    stem = next(node.output[0] for node in onnx.graph().graph.node if node.op_type == "Relu")
    captured = []
    model.bn.register_forward_hook(lambda module, inputs, output: captured.append(output.relu()))
    batch.call(model)
    context = Context(task=Classification())
    results = []
    for size in (19, 7, 1):
        parts = [batch[start : start + size] for start in range(0, 19, size)]
        results.append(calibrate(onnx, ["x", stem], parts, context, "minmax", 99.99))
        assert results[-1][stem] == pytest.approx((captured[0].min().item(), captured[0].max().item()), abs=1e-5)
        assert results[-1]["x"] == (batch.args[0].min().item(), batch.args[0].max().item())
    assert results[0]["x"] == results[1]["x"] == results[2]["x"]


@pytest.mark.slow
def test_calibrating_tells_its_progress_and_stops_when_cancelled():
    onnx, received = to_onnx(zoo.mlp(), zoo.batch("mlp")), []
    context = Context(task=Classification(), observe=received.append)

    def batches():
        yield zoo.batch("mlp")
        yield zoo.batch("mlp", seed=2)
        context.cancelled.set()
        yield zoo.batch("mlp", seed=3)

    with pytest.raises(KdError, match="cancelled"):
        calibrate(onnx, ["x"], batches(), context, "minmax", 99.99, 3)
    assert [item.done for item in received] == [1, 2]


@pytest.mark.slow
def test_no_batches_and_broken_activations_are_errors():
    onnx, context = to_onnx(zoo.mlp(), zoo.batch("mlp")), Context(task=Classification(), stage="quantize static")
    with pytest.raises(KdError, match="quantize static got no batches"):
        calibrate(onnx, ["x"], [], context, "minmax", 99.99)
    batch = zoo.batch("mlp")
    batch.args[0][0, 0] = float("nan")
    with pytest.raises(KdError, match="activation x holds infinities or NaN"):
        calibrate(onnx, ["x"], [Batch(batch.args)], context, "entropy", 99.99)

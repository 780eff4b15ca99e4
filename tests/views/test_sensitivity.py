"""Sensitivity: rounding and zeroing as written out by hand, figures as measured by hand, and a model that stays as it is."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import kdkit
from kdkit.errors import Cancelled, KdError
from kdkit.measurement.predictions import PredictionStore
from kdkit.models.copies import private_copy
from kdkit.views import Sensitivity
from kdkit.views.sensitivity import Effect, LayerSensitivity, measure_sensitivity, rounded, thinned

NUMBERS = st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6)


@pytest.mark.slow
@given(NUMBERS, st.integers(2, 8), st.sampled_from([0, 1]))
def test_rounding_is_what_it_is_by_hand(values: list[float], bits: int, axis: int) -> None:
    weight = torch.tensor(values).view(2, 3)
    found = rounded(weight, axis, bits=bits)
    for row in range(2):
        for column in range(3):
            channel = weight[row] if axis == 0 else weight[:, column]
            largest = max(abs(float(each)) for each in channel)
            step = largest / (2 ** (bits - 1) - 1)
            # a whole number of steps, and none nearer
            if step > 1e-30:
                steps = float(found[row, column]) / step
                assert steps == pytest.approx(round(steps), abs=1e-3)
                assert abs(float(found[row, column]) - float(weight[row, column])) <= step / 2 * 1.001
    assert len(found[0].unique()) <= 2**bits - 1


@pytest.mark.slow
@given(NUMBERS, st.floats(0.01, 1))
def test_zeroing_takes_the_smallest_and_leaves_the_rest(values: list[float], ratio: float) -> None:
    weight = torch.tensor(values).view(2, 3)
    found = thinned(weight, ratio=ratio).flatten()
    order = sorted(range(6), key=lambda at: abs(values[at]))
    gone = set(order[: int(ratio * 6)])
    assert all(float(found[at]) == 0 for at in gone)
    assert all(found[at] == weight.flatten()[at] for at in range(6) if at not in gone)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()


def session(model: nn.Module | None = None, **given: object) -> kdkit.Session:
    torch.manual_seed(0)
    x = torch.randn(70, 4)
    return kdkit.Session(model or net(), **{"eval": (x, x.argmax(1)), "measures": ("quality",)} | given)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"bits": 2}, {"bits": 8}, {"ratio": 0.7}])
def test_each_layers_figures_are_those_of_a_model_disturbed_by_hand(how: dict[str, float]) -> None:
    held = session()
    x, labels = torch.randn(70, 4, generator=torch.Generator().manual_seed(3)), torch.arange(70) % 4
    held.set(eval=(x, labels))
    found = held.show(Sensitivity(items=50, **how))  # type: ignore[arg-type]
    x, labels = x[:50], labels[:50]
    assert found.items == 50
    model = held.head.model
    assert model is not None
    with torch.no_grad():
        before = model(x).argmax(1)
        assert found.undisturbed == pytest.approx((before == labels).double().mean().item())
        for effect in found.effects:
            copy = private_copy(model)
            weight = copy.get_submodule(effect.name).weight
            weight.copy_(rounded(weight, **how) if "bits" in how else thinned(weight, **how))  # type: ignore[arg-type]
            after = copy(x).argmax(1)
            assert effect.value == pytest.approx((after == labels).double().mean().item())
            assert effect.change == pytest.approx(effect.value - found.undisturbed)
            assert effect.agreement == pytest.approx((after == before).double().mean().item())
    assert {(effect.name, effect.parameters) for effect in found.effects} == {("0", 64), ("3", 64)}


def test_the_costliest_come_first_whichever_way_the_metric_is_better() -> None:
    held = session()
    found = held.show(Sensitivity(bits=2))
    costs = [effect.cost for effect in found.effects]
    assert costs == sorted(costs, reverse=True)
    assert [effect.cost for effect in found.effects] == [-effect.change for effect in found.effects]  # type: ignore[operator]
    x = torch.randn(30, 4)
    regression = kdkit.Session(nn.Linear(4, 1), eval=(x, x.sum(1, keepdim=True)), task="regression", measures=("quality",))
    assert [effect.cost for effect in regression.show(Sensitivity(bits=2)).effects] == [effect.change for effect in regression.show(Sensitivity(bits=2)).effects]


def test_the_model_is_untouched_to_the_bit_also_after_a_cancel() -> None:
    held = session()
    model = held.head.model
    assert model is not None
    before = private_copy(model)
    reported = []

    def observe(progress: kdkit.Progress) -> None:  # type: ignore[name-defined]
        reported.append((progress.done, progress.total, progress.text))
        if len(reported) == 8:
            held.cancel()

    held.show(Sensitivity())
    with pytest.raises(Cancelled):
        held.show(Sensitivity(), observe=observe)
    assert reported[0] == (0, 9, "undisturbed")
    assert reported[-1][2] in ("0", "3")
    assert len(reported) == 8
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    assert model.training == before.training
    # and it can be asked again
    assert held.show(Sensitivity()).effects


def test_it_waits_for_no_stage_but_refuses_while_one_runs() -> None:
    held = session()
    inside, let_go = threading.Event(), threading.Event()

    def observe(progress: object) -> None:
        inside.set()
        let_go.wait(10)

    worker = threading.Thread(target=lambda: held.show(Sensitivity(), observe=observe))
    worker.start()
    inside.wait(10)
    try:
        with pytest.raises(KdError, match="a stage is running"):
            held.show(Sensitivity())
    finally:
        let_go.set()
        worker.join()


def test_without_labels_agreement_alone_is_shown() -> None:
    x = torch.randn(20, 4)
    found = session(eval=x, task="classification").show(Sensitivity(bits=2))
    assert found.undisturbed is None
    assert {effect.value for effect in found.effects} == {None}
    assert "change" not in repr(found)
    assert found._repr_html_().count("<svg") == 1


def test_a_tied_weight_is_disturbed_once_and_reported() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4, bias=False)
            self.two = nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x).relu())

    found = session(Tied()).show(Sensitivity())
    assert [effect.name for effect in found.effects] == ["one"]
    assert found.notes == ("two uses the weights of one",)
    assert "note: two uses the weights of one" in repr(found)


def test_transposed_convolutions_are_rounded_by_output_channel() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(2, 3, 1, bias=False)
    layer.weight.data[:, 0] *= 100
    x = torch.randn(8, 2, 1, 1)
    held = kdkit.Session(nn.Sequential(layer, nn.Flatten()), eval=(x, torch.arange(8) % 3), measures=("quality",))
    by_hand = private_copy(held.head.model)  # type: ignore[arg-type]
    weight = by_hand[0].weight.data  # type: ignore[index]
    for channel in range(3):
        weight[:, channel] = rounded(weight[:, channel][None].flatten(1), bits=3).view_as(weight[:, channel])
    expected = (by_hand(x).argmax(1) == held.head.model(x).argmax(1)).double().mean().item()  # type: ignore[misc]
    assert held.show(Sensitivity(bits=3)).effects[0].agreement == pytest.approx(expected)


def test_answers_beyond_what_is_kept_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    held = session()
    kept = held.show(Sensitivity(bits=2))
    monkeypatch.setattr("kdkit.views.sensitivity.PredictionStore", lambda: PredictionStore(memory_bytes=600, disk_bytes=0))
    assert held.show(Sensitivity(bits=2)) == kept


@pytest.mark.slow
def test_what_is_missing_or_wrong_is_named() -> None:
    with pytest.raises(KdError, match="no 'eval'"):
        session(eval=None).show(Sensitivity())
    held = session()
    with pytest.raises(KdError, match="--bits 1: input should be greater than or equal to 2"):
        held.show("sensitivity --bits 1")
    with pytest.raises(KdError, match="--bits 1 is not from 2 to 16"):
        measure_sensitivity(nn.Linear(1, 1), "@base", None, None, None, bits=1)
    with pytest.raises(KdError, match="--ratio 0 is not above 0"):
        measure_sensitivity(nn.Linear(1, 1), "@base", None, None, None, ratio=0)
    with pytest.raises(KdError, match="--items 0"):
        held.show("sensitivity --items 0")
    with pytest.raises(KdError, match="'conv' fits no module"):
        held.show(Sensitivity(layers="conv"))
    with pytest.raises(KdError, match="no layer that matches has weights"):
        held.show(Sensitivity(layers="1"))
    held.run("convert onnx")
    with pytest.raises(KdError, match="disturbs float weights, and @1 has none"):
        held.show(Sensitivity())


def test_a_layer_whose_answers_are_no_numbers_is_the_worst_and_many_are_cut_in_text() -> None:
    effects = [Effect(f"layer.{at}", "Linear", 4, 0.5, -0.1, 0.1, 0.9) for at in range(80)]
    shown = LayerSensitivity("@base", "4 bits", "accuracy", 0.6, 10, tuple(effects))
    assert repr(shown).splitlines()[-1] == "... and 40 that cost less"
    assert len(shown.table.rows) == 80
    assert "the 60 costliest layers" in shown.charts[0]
    from kdkit.views.sensitivity import _harm

    assert max([*effects, Effect("bad", "Linear", 4, math.nan, math.nan, math.nan, 0.0)], key=_harm).name == "bad"

"""Curves of a training run."""

from __future__ import annotations

from kdkit.training.curve import Curve


def test_a_curve_keeps_validation_apart_and_drops_the_loss_that_says_nothing_new() -> None:
    one = Curve.of([(1, {"loss": 2.0, "label": 2.0}), (2, {"loss": 1.0, "label": 1.0})])
    assert repr(one) == "curve over 2 steps: label 2 -> 1"
    two = Curve.of([(1, {"loss": 2.0, "label": 1.0, "learning_rate": 9.0}), (2, {"loss": 1.0, "label": 1.0, "validation_accuracy": 0.5})])
    assert repr(two) == "curve over 2 steps: loss 2 -> 1, label 1 -> 1, validation_accuracy 0.5 -> 0.5"
    assert two._repr_html_().count("<svg") == 2
    assert repr(Curve({})) == "curve over 0 steps: nothing"
    assert Curve({})._repr_html_() == ""

"""Which modules a pattern means."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from kdkit.errors import KdError
from kdkit.models.layer_selection import select_layers


def block() -> nn.ModuleDict:
    return nn.ModuleDict({"q_proj": nn.Linear(2, 2), "fc": nn.Linear(2, 2), "act": nn.ReLU()})


def tower(layers: int = 12) -> nn.ModuleDict:
    return nn.ModuleDict({"layer": nn.ModuleList(block() for _ in range(layers)), "fc": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("fc", ["fc"]),
        ("layer.1", ["layer.1.q_proj", "layer.1.fc"]),
        ("layer.1.q_proj", ["layer.1.q_proj"]),
        ("q_proj", ["layer.0.q_proj", "layer.1.q_proj", "layer.2.q_proj"]),
        ("2.fc", ["layer.2.fc"]),
        ("*.fc", ["layer.0.fc", "layer.1.fc", "layer.2.fc"]),
        ("*fc", ["layer.0.fc", "layer.1.fc", "layer.2.fc", "fc"]),
        ("layer.?", ["layer.0.q_proj", "layer.0.fc", "layer.1.q_proj", "layer.1.fc", "layer.2.q_proj", "layer.2.fc"]),
        ("layer.[02].q*", ["layer.0.q_proj", "layer.2.q_proj"]),
    ],
)
def test_a_pattern_means_what_it_fits_and_everything_beneath_it(pattern, meant):
    assert list(select_layers(tower(3), [pattern], nn.Linear)) == meant


def test_segments_are_complete_so_layer_1_is_not_layer_11():
    assert "layer.11.fc" not in select_layers(tower(12), ["layer.1"])
    assert "a.layer.11.fc" not in select_layers(nn.ModuleDict({"a": tower(12)}), ["layer.1"])


def test_without_kinds_every_module_counts():
    assert list(select_layers(tower(1), ["layer.0"])) == ["layer.0", "layer.0.q_proj", "layer.0.fc", "layer.0.act"]


def test_several_patterns_are_joined_in_the_order_of_the_model():
    assert list(select_layers(tower(2), ["fc", "layer.1.q_proj", "layer.0.fc"], nn.Linear)) == ["layer.0.fc", "layer.1.q_proj", "fc"]


def test_a_model_that_is_one_layer_is_met_by_a_star():
    net = nn.Linear(2, 2)
    assert select_layers(net, ["*"], nn.Linear) == {"": net}


def test_no_patterns_mean_no_modules():
    assert select_layers(tower(1), []) == {}


def test_a_shared_module_fits_under_both_names_and_is_returned_under_its_first():
    shared = block()
    net = nn.ModuleDict({"left": shared, "right": shared})
    assert list(select_layers(net, ["right"], nn.Linear)) == ["left.q_proj", "left.fc"]


def test_a_pattern_that_fits_nothing_names_near_ones():
    with pytest.raises(KdError, match=r"'q_prj' fits no Linear") as caught:
        select_layers(tower(2), ["fc", "q_prj"], nn.Linear)
    assert "did you mean q_proj?" in caught.value.hints


def test_a_pattern_that_fits_only_other_kinds_says_which():
    with pytest.raises(KdError, match=r"'act' fits no Linear, only ReLU"):
        select_layers(tower(1), ["act"], nn.Linear)


def test_a_model_without_the_kind_says_so():
    with pytest.raises(KdError) as caught:
        select_layers(tower(1), ["*"], (nn.Conv2d, nn.Conv1d))
    assert "the model has no Conv2d or Conv1d at all" in caught.value.hints


@pytest.mark.slow
@given(some.sampled_from([name for name, _ in tower(12).named_modules() if name]), some.integers(0, 20))
def test_a_name_cut_anywhere_and_starred_still_means_the_module(name, cut):
    net = tower(12)
    found = select_layers(net, [name[:cut] + "*"])
    assert name in found
    assert all(fnmatchcase(other, name[:cut] + "*") for other in found)

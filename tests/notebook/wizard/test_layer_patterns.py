"""Layer patterns: they select what was chosen, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some
from torch import nn

from kdkit.models.layer_selection import select_layers
from kdkit.notebook.wizard.layer_patterns import shortest_patterns

NET = nn.ModuleDict(
    {
        "stem": nn.Linear(1, 1),
        "body": nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)), nn.Linear(1, 1)),
        "heads": nn.ModuleDict({"stem": nn.Linear(1, 1), "1": nn.Linear(1, 1)}),
    }
)
LAYERS = [name for name, module in NET.named_modules() if isinstance(module, nn.Linear)]


@given(some.sets(some.sampled_from(LAYERS)))
def test_patterns_select_the_chosen_layers_and_no_others(chosen):
    patterns = shortest_patterns(LAYERS, chosen)
    assert set(select_layers(NET, patterns, nn.Linear)) == chosen if patterns else not chosen


def test_all_layers_of_a_module_are_one_pattern():
    assert shortest_patterns(LAYERS, {"body.0", "body.1.0", "body.1.2", "body.2", "stem"}) == ("stem", "body")

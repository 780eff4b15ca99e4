"""Channels of convolutional nets of other people: what cannot be cut is left alone and named, and the rest is pruned."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.models import private_copy
from kdkit.session.adoption import adopt_data
from kdkit.stages.context import Context
from kdkit.tasks import Regression
from kdkit_prune.channels import Channels


def prune(model: nn.Module, batch: Batch, **options) -> tuple[nn.Module, list[str]]:
    context = Context(task=Regression(), objects={"example": adopt_data([batch])})
    return Channels(**options).apply(private_copy(model), context), context.notes


def with_computed_weight(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3)
    made = {
        "weight_norm": nn.utils.parametrizations.weight_norm,
        "spectral_norm": nn.utils.parametrizations.spectral_norm,
        "old weight_norm": nn.utils.weight_norm,
        "old spectral_norm": nn.utils.spectral_norm,
        "mask": lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    }[kind](layer)
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), made, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "old weight_norm", "old spectral_norm", "mask"])
@pytest.mark.parametrize("options", [{}, {"layers": ("4",)}, {"skip": ("0", "2")}, {"macs": 0.8}], ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_with_a_computed_weight_and_what_hangs_on_it_stay_and_the_rest_is_pruned(kind, options):
    model, batch = with_computed_weight(kind), Batch((torch.randn(4, 3, 12, 12),))
    batch.call(model)  # with gradients, so that a hook's weight belongs to a graph
    pruned, notes = prune(model, batch, **options)
    assert (pruned[0].out_channels, pruned[2].out_channels) == (8, 8)
    assert pruned[4].out_channels < 8
    if not options.get("skip"):
        assert any("(layer, 'weight')" in note for note in notes)


class Shuffled(nn.Module):
    """PixelShuffle moves the channels of `c1` to places."""

    def __init__(self):
        super().__init__()
        self.c0, self.c1, self.shuffle = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 1), nn.PixelShuffle(2)
        self.c2, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.c2(self.shuffle(self.c1(self.c0(x).relu()).relu())).mean((2, 3)))


class Split(nn.Module):
    """Chunks of channels take different paths, as in C2f of YOLOv8."""

    def __init__(self):
        super().__init__()
        self.c0, self.c1, self.c2, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(24, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        one, two = self.c0(x).chunk(2, 1)
        return self.fc(self.c2(torch.cat([one, two, self.c1(two)], 1)).mean((2, 3)))


class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.c0, self.c1, self.fc = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.c1(self.c0(x).relu())[:, [0, 3, 9, 15]].mean((2, 3)))


@pytest.mark.parametrize("make", [Shuffled, Split, Indexed])
def test_notes_about_what_can_not_be_followed_are_never_in_the_words_of_torch_or_python(make):
    torch.manual_seed(0)
    model, batch = make().eval(), Batch((torch.randn(4, 3, 12, 12),))
    pruned, notes = prune(model, batch)
    with torch.no_grad():
        assert batch.call(pruned).shape == (4, 5)
    text = " ".join(notes)
    assert not re.search(r"out of bounds|out of range|dimension \d|tensor a|Error|must match|expected", text), text


def test_a_model_that_can_not_be_traced_is_refused_without_a_word_of_python():
    import transformers

    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    ids = torch.randint(1, 60, (2, 9))
    with pytest.raises(KdError, match="torch-pruning can't follow the channels of MambaForCausalLM\n  hint: %kd decompose svd"):
        prune(transformers.MambaForCausalLM(config).eval(), Batch(kwargs={"input_ids": ids}, labels=ids))

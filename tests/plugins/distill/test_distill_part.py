"""The part of distillation: batches in which layer drop skips a layer that is compared."""

import pytest
import torch
from torch import nn

from kdkit import Session


class Dropping(nn.Module):
    """A block that is skipped at random in training, as in wav2vec2."""

    def __init__(self, drop: float):
        super().__init__()
        self.drop = drop
        self.first, self.block, self.head = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.first(x).relu()
        if not self.training or torch.rand(()) >= self.drop:
            hidden = hidden + self.block(hidden)
        return self.head(hidden)


@pytest.mark.slow
@pytest.mark.parametrize(("drop", "options"), [(0.5, ""), (0.5, "--no-labels"), (1.0, "")])
def test_a_batch_without_the_layer_does_without_its_term_and_says_so(drop, options):
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
    session = Session(Dropping(drop), train=(x, y), eval=(x, y), teacher=Dropping(0.0), batch_size=8, measures=("quality",))
    made = session.run(f"distill hints --layers block --epochs 2 {options}")
    assert any("block did not run in some batches of the training (layer drop)" in note for note in made.notes)


def test_a_layer_that_always_runs_is_not_mentioned():
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.randint(0, 3, (32,))
    session = Session(Dropping(0.0), train=(x, y), eval=(x, y), teacher=Dropping(0.0), batch_size=8, measures=("quality",))
    assert not any("layer drop" in note for note in session.run("distill hints --layers block --epochs 1").notes)

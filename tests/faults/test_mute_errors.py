"""Errors of others whose message can't be written: each place that tells of one still tells it."""

from __future__ import annotations

import pytest
import torch

from kdkit import Batch, Context, KdError, Session, stage
from kdkit.display.attachments import as_html, as_text
from kdkit.models.trial_call import try_call
from kdkit.session.events import Event, notify


class Mute(ValueError):
    """An error whose message can't be written."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.fixture
def mute_net():
    class Net(torch.nn.Linear):
        def forward(self, x):
            raise Mute

    return Net(8, 3)


def test_an_error_without_words_in_a_model_ends_in_one_of_kdkit(mute_net):
    with pytest.raises(KdError, match="can't be written"):
        try_call(mute_net, Batch((torch.zeros(2, 8),)))


def test_an_error_without_words_in_a_stage_ends_in_one_of_kdkit_and_leaves_the_session(offered):
    @offered
    @stage("broken.mute")
    def broken(model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Fail without words."""
        raise Mute

    session = Session(torch.nn.Linear(8, 3), eval=(torch.zeros(4, 8), torch.zeros(4).long()), measures=())
    before = session.history
    with pytest.raises(KdError, match="can't be written"):
        session.run(broken())
    assert session.history is before


def test_an_error_without_words_in_a_stage_is_logged(offered, caplog):
    @offered
    @stage("broken.mute")
    def broken(model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Fail without words."""
        raise Mute

    with caplog.at_level("INFO", "kdkit"), pytest.raises(KdError):
        Session(torch.nn.Linear(8, 3), measures=()).run(broken())
    assert "can't be written" in caplog.messages[-1]


def test_an_error_without_words_in_an_attachment_is_described_there():
    class Shy:
        def __repr__(self) -> str:
            raise Mute

    assert "can't be written" in as_text(Shy())
    assert "be written" in as_html(Shy())


def test_an_error_without_words_in_a_tracker_is_a_warning():
    class Tracker:
        name = "mute"

        def log(self, event):
            raise Mute

    with pytest.warns(UserWarning, match="tracker mute: log raised Mute: its message can't be written"):
        notify(Event("started", None), [Tracker()])


def test_an_error_without_words_in_the_data_ends_in_one_of_kdkit():
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise Mute

    with pytest.raises(KdError, match="can't be written"):
        Session(torch.nn.Linear(8, 3), eval=torch.utils.data.DataLoader(Items(), batch_size=2))

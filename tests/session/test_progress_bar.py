"""Progress bars of scripts."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from typing import Any

import pytest
import torch

from kdkit import Session
from kdkit.session.progress_bar import observed
from kdkit.stages import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDKIT_STABLE", raising=False)


def last_lines(terminal: Terminal) -> list[str]:
    """What a terminal shows at the end: each line after its last carriage return."""
    return [line.rstrip().split("\r")[-1] for line in terminal.getvalue().split("\n")]


def test_each_stage_has_a_bar_with_its_place_text_and_figures() -> None:
    with redirect_stderr(terminal := Terminal()), observed(None, None) as observe:
        observe(Progress("tune finetune", 0, 1, "begins", part=1, parts=2))
        observe(Progress("tune finetune", 4, 4, "epoch 2", {"loss": 0.25}, part=1, parts=2))
        observe(Progress("quantize static", 3, 10, "calibrating", part=2, parts=2))
    first, second, _ = last_lines(terminal)
    assert first.startswith("tune finetune (1 of 2), epoch 2: 100%")
    assert "4/4" in first
    assert "loss=0.25" in first
    assert second.startswith("quantize static (2 of 2), calibrating:  30%")
    assert "3/10" in second


@pytest.fixture
def session() -> Session:
    return Session(torch.nn.Linear(8, 4), example=torch.zeros(1, 8), measures=("parameters",))


def shown(session: Session, to: io.StringIO, **options: Any) -> str:
    """What a run writes to stderr."""
    with redirect_stderr(to):
        session.run("decompose svd --ratio 0.5", on="@base", **options)
    return to.getvalue()


def test_a_script_in_a_terminal_shows_the_progress_of_a_run(session: Session) -> None:
    text = shown(session, Terminal())
    assert "decompose svd, begins" in text
    assert "decompose svd, measuring: 100%" in text


def test_a_caller_who_observes_sees_the_progress_himself(session: Session) -> None:
    seen: list[Progress] = []
    assert not shown(session, Terminal(), observe=seen.append)
    assert seen


def test_nothing_is_shown_where_nobody_looks_unless_asked_for(session: Session) -> None:
    assert not shown(session, io.StringIO())
    assert "decompose svd" in shown(session.set(verbose=True), io.StringIO())
    assert not shown(session.set(verbose=False), Terminal())
    assert "decompose svd" in shown(session.set(verbose=None), Terminal())


def test_every_kind_of_run_shows_its_progress(session: Session) -> None:
    with redirect_stderr(terminal := Terminal()):
        session.trial("decompose svd --ratio 0.5")
        with session.experiment() as trial:
            trial("decompose svd --rank 1")
    assert terminal.getvalue().count("decompose svd, measuring: 100%") >= 2


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_goes_on_where_stderr_is_gone(session: Session, monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    stderr = Terminal()
    stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr if closed else None)
    for verbose in (True, None):
        assert session.set(verbose=verbose).run("decompose svd --ratio 0.5", on="@base")["parameters"] < session["@base"]["parameters"]  # type: ignore[operator]

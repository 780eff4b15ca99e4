"""The step log: a session's steps as records of the logger `kdkit`."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from kdkit import KdError, Session

SCRIPT = """
import torch, kdkit
from torch import nn
session = kdkit.Session(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), example=torch.zeros(1, 4), measures=("size",))
session.run("prune channels --ratio 0.25")
"""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_step_logs_its_beginning_and_its_end_with_figures(caplog) -> None:
    with caplog.at_level(logging.INFO, "kdkit"):
        version = Session(net(), example=torch.zeros(1, 4), measures=("size",)).run("prune channels --ratio 0.25")
    records = [record for record in caplog.records if record.name == "kdkit"]
    assert {record.levelname for record in records} == {"INFO"}
    assert records[0].getMessage() == "prune channels --ratio 0.25 begins"
    assert f"made {version.name}" in records[1].getMessage()
    assert f"size {version.report['size'].text()}" in records[1].getMessage()
    assert len(records) == 2 + len(version.notes)


def test_a_step_that_fails_logs_its_error(caplog) -> None:
    x = torch.full((8, 4), float("nan"))
    session = Session(net(), train=(x, torch.zeros(8, dtype=torch.long)), measures=("size",))
    with caplog.at_level(logging.INFO, "kdkit"), pytest.raises(KdError) as raised:
        session.run("tune finetune --epochs 2")
    assert caplog.messages[-1].startswith("tune finetune --epochs 2 failed: ")
    assert raised.value.message.splitlines()[0] in caplog.messages[-1]


@pytest.mark.slow
def test_a_script_that_configures_no_logging_shows_no_records() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")
    assert "begins" not in done.stderr


@pytest.mark.slow
def test_a_script_that_configures_logging_shows_the_steps() -> None:
    done = subprocess.run([sys.executable, "-c", "import logging; logging.basicConfig(level='INFO')\n" + SCRIPT], capture_output=True, text=True, timeout=120)
    assert "INFO:kdkit:prune channels --ratio 0.25 begins" in done.stderr
    assert "INFO:kdkit:prune channels --ratio 0.25 made @1" in done.stderr


def test_a_handler_that_fails_is_a_warning_and_the_stage_goes_on():
    class Down(logging.Handler):
        def emit(self, record):
            raise ConnectionError("no server")

    logger, handler = logging.getLogger("kdkit"), Down()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        session = Session(net(), example=torch.zeros(1, 4), measures=())
        with pytest.warns(UserWarning, match="the log raised ConnectionError: no server"):
            session.run("decompose svd --ratio 0.5")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len(session.versions) == 2

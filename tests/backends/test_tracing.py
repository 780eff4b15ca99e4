"""Tracing: an export is silent, and what it silences is heard again afterwards."""

from __future__ import annotations

import logging
import sys
import threading

import pytest
import torch
from torch import nn

from kdkit.backends.onnx.export import to_onnx
from kdkit.backends.tracing import quiet_export
from kdkit.data import Batch
from kdkit.errors import KdError


class Selects(nn.Module):
    def forward(self, x):
        found = x[x.sum(1) > 0]
        return x if found.numel() == 0 else x + found.mean()


def test_a_refused_onnx_export_prints_no_graph(capfd):
    with pytest.raises(KdError, match="Selects can't be exported to ONNX: forward branches on the values of a tensor"):
        to_onnx(Selects(), Batch((torch.ones(2, 3),)))
    assert capfd.readouterr() == ("", "")


def test_what_other_threads_print_during_an_export_is_shown(capsys):
    with quiet_export():
        print("of the exporter")
        thread = threading.Thread(target=print, args=("of the user",))
        thread.start()
        thread.join()
    print("afterwards")
    assert capsys.readouterr().out == "of the user\nafterwards\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_streams_and_loggers_are_as_before_however_an_export_ends(error):
    before = sys.stdout, sys.stderr, logging.getLogger("torch.onnx").level
    with pytest.raises(error), quiet_export():
        raise error
    assert (sys.stdout, sys.stderr, logging.getLogger("torch.onnx").level) == before

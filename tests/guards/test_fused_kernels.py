"""Torch's switches of fused kernels: off for as long as a block of any thread needs it, and then as before."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from kdkit.guards import fused_kernels
from kdkit.guards.cleanup import run_cleanups
from kdkit.guards.fused_kernels import read_fused_kernels, set_fused_kernels, without_kernels

NAMES = sorted(read_fused_kernels())
HELD: list = []
"""Blocks that are entered and never left."""


@pytest.mark.parametrize("name", NAMES)
def test_each_switch_is_off_within_a_block_and_as_before_after_it(name):
    before = read_fused_kernels()
    with without_kernels(name):
        assert fused_kernels._read() == before | {name: False}
    assert read_fused_kernels() == before


def test_a_switch_that_the_user_turned_off_stays_off():
    before = read_fused_kernels()
    set_fused_kernels(before | {"mkldnn": False})
    try:
        with without_kernels("mha fastpath"):
            pass
        assert read_fused_kernels() == before | {"mkldnn": False}
    finally:
        set_fused_kernels(before)


def test_without_fused_attention_the_plain_one_is_on_where_the_user_had_turned_it_off():
    before = read_fused_kernels()
    set_fused_kernels(before | {"math attention": False})
    try:
        with without_kernels("flash attention", "mem_efficient attention", "cudnn attention"):
            assert fused_kernels._read()["math attention"]
        assert not fused_kernels._read()["math attention"]
    finally:
        set_fused_kernels(before)


def test_a_block_that_ends_leaves_off_what_the_block_of_another_thread_needs():
    before, begun, go = read_fused_kernels(), threading.Event(), threading.Event()

    def work():
        with without_kernels("mha fastpath"):
            begun.set()
            go.wait()

    with without_kernels("mha fastpath", "mkldnn"):
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
    assert fused_kernels._read() == before | {"mha fastpath": False}
    go.set()
    thread.join()
    assert read_fused_kernels() == before


def test_a_snapshot_that_is_taken_during_a_block_holds_the_switches_outside_of_it():
    before = read_fused_kernels()
    with without_kernels(*NAMES):
        taken = read_fused_kernels()
    set_fused_kernels(taken)
    assert taken == before == read_fused_kernels()


def test_what_is_set_during_a_block_holds_when_it_ends():
    before = read_fused_kernels()
    with without_kernels("mkldnn"):
        set_fused_kernels(before | {"mha fastpath": False})
        assert not torch.backends.mkldnn.enabled
    assert read_fused_kernels() == before | {"mha fastpath": False}
    set_fused_kernels(before)


def test_a_block_that_is_left_for_the_garbage_collector_ends_itself_alone():
    before, left = read_fused_kernels(), without_kernels("mkldnn")
    left.__enter__()
    run_cleanups(0)
    with without_kernels("mha fastpath"):
        del left
        gc.collect()
        assert not torch.backends.mha.get_fastpath_enabled()
    assert fused_kernels._read() == before


def test_an_interrupt_on_the_way_out_of_a_block_is_made_up_for(monkeypatch):
    before, write, armed = read_fused_kernels(), fused_kernels._write, []

    def interrupted(switches):
        if armed:
            armed.clear()
            raise KeyboardInterrupt
        write(switches)

    monkeypatch.setattr(fused_kernels, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt), without_kernels("mkldnn"):
        armed.append(True)
    run_cleanups(0)
    assert fused_kernels._read() == before


def test_the_blocks_of_a_thread_that_has_ended_are_ended():
    before = read_fused_kernels()
    thread = threading.Thread(target=lambda: HELD.append(without_kernels("mkldnn")) or HELD[-1].__enter__())
    thread.start()
    thread.join()
    run_cleanups(0)
    assert fused_kernels._read() == before


def test_an_error_in_a_block_ends_it():
    with pytest.raises(ValueError, match="within"), without_kernels("mkldnn"):
        raise ValueError("within")
    assert torch.backends.mkldnn.enabled

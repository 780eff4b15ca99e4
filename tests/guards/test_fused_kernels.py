"""Torch's switches of fused kernels: off for as long as a block of any thread needs it, and then as before."""

from __future__ import annotations

import threading

import pytest
import torch

from kdkit.guards.fused_kernels import read_fused_kernels, set_fused_kernels, without_kernels

NAMES = sorted(read_fused_kernels())


@pytest.mark.parametrize("name", NAMES)
def test_each_switch_is_off_within_a_block_and_as_before_after_it(name):
    before = read_fused_kernels()
    with without_kernels(name):
        assert read_fused_kernels() == before | {name: False}
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
    assert read_fused_kernels() == before | {"mha fastpath": False}
    go.set()
    thread.join()
    assert read_fused_kernels() == before


def test_an_error_in_a_block_ends_it():
    with pytest.raises(ValueError, match="within"), without_kernels("mkldnn"):
        raise ValueError("within")
    assert torch.backends.mkldnn.enabled

"""Torch's modes: gradients and autocast are as before after a call, however it ends."""

from __future__ import annotations

import pytest
import torch

from kdkit.guards.fused_kernels import read_fused_kernels, without_kernels
from kdkit.guards.torch_modes import TorchModes, restore_torch_modes, without_gradients
from tests.fixtures.interruption import interrupted_at_blocks


def modes() -> tuple:
    """Everything that the guard restores."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), TorchModes().depth


def forget(error: type[BaseException] | None = None) -> None:
    """Leave all modes changed, and raise."""
    torch.set_grad_enabled(False)
    torch.set_autocast_enabled("cpu", True)
    torch.autocast_increment_nesting()
    if error:
        raise error


@pytest.fixture(autouse=True)
def as_before():
    before = TorchModes()
    yield
    before.put_back()


def test_a_snapshot_restores_all_modes_and_may_be_restored_twice():
    before, snapshot = modes(), TorchModes()
    forget()
    assert modes() != before
    snapshot.put_back()
    snapshot.put_back()
    assert modes() == before


def test_a_guarded_function_that_changes_the_modes_leaves_them_as_they_were():
    before = modes()
    restore_torch_modes(forget)()
    assert modes() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_guarded_function_that_raises_leaves_the_modes_as_they_were(error):
    before = modes()
    with pytest.raises(error):
        restore_torch_modes(forget)(error)
    assert modes() == before


def test_a_guarded_function_ends_the_blocks_that_an_interrupt_cut_off_and_no_others():
    before = read_fused_kernels()
    cut_off = without_kernels("mha fastpath")  # held, since the garbage collector would end it
    with without_kernels("mkldnn"):
        restore_torch_modes(cut_off.__enter__)()
        assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == (True, False)
    assert read_fused_kernels() == before


def test_a_guarded_function_keeps_its_result_and_its_name():
    @restore_torch_modes
    def add(one: int, other: int = 1) -> int:
        return one + other

    assert (add(1, other=2), add.__name__) == (3, "add")


def test_a_guarded_function_sees_the_modes_of_its_caller():
    with torch.no_grad():
        assert not restore_torch_modes(torch.is_grad_enabled)()
    assert restore_torch_modes(torch.is_grad_enabled)()


def test_a_function_without_gradients_sees_none_and_leaves_them_as_they_were():
    assert not without_gradients(torch.is_grad_enabled)()
    with pytest.raises(ValueError, match="own"):
        without_gradients(raise_own)()
    assert torch.is_grad_enabled()
    with torch.no_grad():
        without_gradients(torch.is_grad_enabled)()
        assert not torch.is_grad_enabled()


def raise_own():
    raise ValueError("own")


def test_an_interrupt_as_a_block_ends_leaves_gradients_off_except_in_a_guarded_function():
    def block():
        with torch.no_grad():
            pass

    assert "no_grad.__exit__" in " ".join(interrupted_at_blocks(block))
    assert interrupted_at_blocks(restore_torch_modes(block)) == []
    assert interrupted_at_blocks(without_gradients(lambda: None)) == []

"""Copies: a version shares the tensors that its parent has already."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from kdkit.errors import KdError
from kdkit.models.copies import private_copy, share_unchanged


class Block(nn.Module):
    """Two equal layers under given names."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


def test_an_equal_tensor_of_the_same_name_is_shared_and_a_changed_one_is_not() -> None:
    parent = nn.Linear(4, 4)
    model = copy.deepcopy(parent)
    with torch.no_grad():
        model.bias += 1
    assert share_unchanged(model, parent) == parent.weight.nbytes
    assert model.weight.data_ptr() == parent.weight.data_ptr()
    assert model.bias.data_ptr() != parent.bias.data_ptr()


def test_a_renamed_layer_shares_with_the_layer_that_it_was_and_not_with_an_equal_one() -> None:
    one = nn.Linear(4, 4)
    parent = Block(a=copy.deepcopy(one), b=copy.deepcopy(one))
    model = Block(x=copy.deepcopy(one), y=copy.deepcopy(one))
    share_unchanged(model, parent, {"a": "y", "b": "x"})
    assert model.y.weight.data_ptr() == parent.a.weight.data_ptr()
    assert model.x.weight.data_ptr() == parent.b.weight.data_ptr()


def test_a_wrong_rename_loses_nothing() -> None:
    parent = Block(a=nn.Linear(4, 4))
    model = Block(b=copy.deepcopy(parent.a))
    assert share_unchanged(model, parent, {"a": "c"}) == sum(tensor.nbytes for tensor in parent.parameters())


def test_tensors_that_are_equal_by_chance_are_not_tied_to_each_other() -> None:
    parent = Block(a=nn.Linear(4, 4))
    model = Block(a=copy.deepcopy(parent.a), b=copy.deepcopy(parent.a))
    share_unchanged(model, parent, {"a": "b"})
    assert model.a.weight.data_ptr() != model.b.weight.data_ptr()


@pytest.mark.parametrize("attach", [lambda layer: prune.l1_unstructured(layer, "weight", 0.5), torch.nn.utils.weight_norm], ids=["masks", "weight_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_whose_weights_a_hook_computes_is_copied_before_its_first_call(attach) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    attach(model[0])
    made, inputs = private_copy(model), torch.randn(2, 4)
    assert torch.equal(made(inputs), model(inputs))
    assert made[0].weight.data_ptr() != model[0].weight.data_ptr()


class Keeper(nn.Module):
    """Keeps what it computed, in many ways, as a cache of features does."""

    def __init__(self):
        super().__init__()
        self.layer, self.listed, self.named, self.last = nn.Linear(4, 4), [], {}, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.layer(x)
        self.listed.append((self.last,))
        self.named["last"] = self.last
        return self.last


@pytest.mark.parametrize("grad", [True, False])
def test_a_model_that_keeps_what_it_computed_is_copied_with_and_without_gradients(grad: bool) -> None:
    model = Keeper()
    with torch.set_grad_enabled(grad):
        model(torch.ones(1, 4))
    made = private_copy(model)
    assert torch.equal(made.last, model.last)
    assert made.last is made.listed[0][0] is made.named["last"]
    assert not made.last.requires_grad
    assert made.layer.weight.requires_grad
    assert made.layer.weight.data_ptr() != model.layer.weight.data_ptr()


def test_what_can_not_be_copied_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].lock = threading.Lock()
    with pytest.raises(KdError, match=r"Sequential can't be copied, because of 0.lock \(lock\)"):
        private_copy(model)


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrization_that_is_removed_from_one_copy_stays_in_the_other(kind) -> None:
    net, x = nn.Sequential(kind(nn.Linear(4, 4))).eval(), torch.randn(2, 4)
    expected = net(x)
    first, second = private_copy(net), private_copy(net)
    parametrize.remove_parametrizations(first[0], "weight")
    parametrize.register_parametrization(second[0], "bias", nn.Identity())
    assert (type(first[0]), type(net[0]).__name__) == (nn.Linear, "ParametrizedLinear")
    for each in (net, second, private_copy(second)):
        torch.testing.assert_close(each(x), expected)

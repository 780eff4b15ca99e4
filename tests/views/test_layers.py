"""Layers: what each module holds and computes, once; what is marked; and what is told where there is too much of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import kdkit
from kdkit.data import Batch
from kdkit.errors import KdError
from kdkit.measurement.macs import count_macs, macs_by_module
from kdkit.measurement.size import count_parameters, size_bytes
from kdkit.models.copies import private_copy
from kdkit.views import Layers
from kdkit.views.layers import LINES, LayerTree
from tests.fixtures.zoo import batch as zoo_batch
from tests.fixtures.zoo import tiny_llama


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))


def images() -> Batch:
    return Batch((torch.zeros(1, 1, 4, 4),))


def by_name(shown: Layers) -> dict[str, object]:
    return {layer.name: layer for _, layer in shown.root.walk()}


@pytest.mark.parametrize(("make", "example"), [(small, images), (tiny_llama, lambda: zoo_batch("tiny_llama"))])
def test_every_module_holds_what_counting_it_alone_gives(make, example):
    model = make()
    shown = LayerTree.of(model, "@base", example=example())
    assert shown.root.macs == count_macs(model, example())
    found = by_name(shown)
    assert list(found) == [name for name, _ in model.named_modules()]
    for name, module in model.named_modules():
        assert (found[name].parameters, found[name].bytes) == (count_parameters(module), size_bytes(module)), name


def test_macs_are_those_of_each_modules_calls():
    found = macs_by_module(small(), images())
    assert found == {"": 192, "0": 144, "1": 0, "2": 48, "2.0": 0, "2.1": 48}


def test_a_module_that_is_called_twice_counts_both_calls_and_a_list_what_is_in_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False)])

        def forward(self, x):
            return self.blocks[0](self.blocks[0](x))

    shown = LayerTree.of(Twice(), "@base", example=Batch((torch.zeros(1, 4),)))
    assert {name: layer.macs for name, layer in by_name(shown).items()} == {"": 32, "blocks": 32, "blocks.0": 32}


def test_a_shared_module_and_a_shared_weight_are_counted_once():
    shared = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 4, bias=False))
    model[3].weight = shared.weight
    shown = LayerTree.of(model, "@base")
    found = by_name(shown)
    assert list(found) == ["", "0", "1", "3"]
    assert (found["0"].parameters, found["0"].note) == (16, "also 2")
    assert (found["3"].parameters, found["3"].note) == (0, "weight is 0.weight")
    assert shown.root.parameters == 16 == count_parameters(model)
    assert "also 2" in repr(shown)
    assert "weight is 0.weight" in shown._repr_html_()


def test_packed_weights_count_where_they_are():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), {nn.Linear})
    shown = LayerTree.of(model, "@int8")
    assert by_name(shown)["0"].parameters == count_parameters(model) == 36
    assert shown.root.bytes == size_bytes(model)


def test_patterns_mark_what_they_mean_and_the_text_lists_it_alone():
    shown = LayerTree.of(small(), "@base", ["2"])
    assert [layer.name for layer in shown.marked] == ["2", "2.0", "2.1"]
    assert [line.split()[0] for line in repr(shown).splitlines()[2:]] == ["2", "2.0", "2.1"]
    assert shown.summary == "@base: 2 means 3 of 5 modules: 51 parameters, 204 B (56 %)"
    assert shown._repr_html_().count("(marked)") == 3
    with pytest.raises(KdError, match="'conv' fits no module"):
        LayerTree.of(small(), "@base", ["conv"])


class Tree(HTMLParser):
    """Which details are open, and that tags close in order."""

    def __init__(self, html: str):
        super().__init__()
        self.stack, self.opened, self.items = [], [], 0
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        if tag not in ("rect", "path", "br"):
            self.stack.append(tag)
        self.items += tag == "li"
        if tag == "details":
            self.opened.append(("open", None) in attrs)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in ("rect", "path"):
            assert self.stack.pop() == tag


def test_the_tree_folds_and_is_open_where_it_is_small_or_marked():
    assert Tree(LayerTree.of(small(), "@base")._repr_html_()).opened == [True, True]
    deep = LayerTree.of(nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.ReLU()) for _ in range(30))), "@deep")
    tree = Tree(deep._repr_html_())
    assert tree.opened == [True] + [False] * 30
    assert tree.items == len(deep) + 1 == 121
    marked = Tree(LayerTree.of(nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(30))), "@deep", ["7.0"])._repr_html_())
    assert [index for index, opened in enumerate(marked.opened) if opened] == [0, 8]


def test_a_large_tree_is_cut_in_text_and_says_what_is_left():
    deep = LayerTree.of(nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(30))), "@deep")
    lines = repr(deep).splitlines()
    assert len(lines) == 2 + 31 + 1
    assert lines[-1].startswith("... and 60 more")
    wide = repr(LayerTree.of(nn.Sequential(*(nn.Linear(2, 2) for _ in range(90))), "@wide")).splitlines()
    assert len(wide) == 2 + LINES + 1
    assert wide[-1].startswith("... and 51 more")


def test_the_largest_have_bars_and_the_rest_one_together():
    shown = LayerTree.of(nn.Sequential(*(nn.Linear(2, width, bias=False) for width in range(1, 21))), "@wide")
    assert next(iter(shown.sizes)) == "19"
    assert list(shown.sizes)[-1] == "others (8)"
    assert len(shown.sizes) == 13
    assert sum(shown.sizes.values()) == shown.root.bytes
    assert "others (8)" in shown.chart


def test_a_model_without_anything_in_it_is_shown():
    shown = LayerTree.of(nn.ReLU(), "@base", example=Batch((torch.zeros(1, 2),)))
    assert repr(shown).splitlines()[2].split() == ["ReLU", "ReLU", "0", "0", "B", "0"]
    assert Tree(shown._repr_html_()).items == 1


def test_a_model_that_does_not_run_on_the_example_says_so_and_is_shown():
    shown = LayerTree.of(small(), "@base", example=Batch((torch.zeros(1, 7),)))
    assert shown.root.macs is None
    assert "note: MACs were not counted: " in repr(shown)
    assert "MACs were not counted" in shown._repr_html_()


def test_looking_changes_nothing_and_takes_its_hooks_away():
    model = small().train()
    before = private_copy(model).state_dict()
    LayerTree.of(model, "@base", example=images())
    with pytest.raises(RuntimeError):
        macs_by_module(model, Batch((torch.zeros(1, 7),)))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def session() -> kdkit.Session:
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    return kdkit.Session(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)), train=(x, x.argmax(1)), eval=(x, x.argmax(1)), measures=("parameters", "macs"))


def test_a_session_shows_any_version():
    held = session()
    held.run("prune channels --ratio 0.5", label="slim")
    assert held.show(Layers()).version == "@slim"
    for version in ("@base", "@slim"):
        assert held.show(Layers(version=version)).root.parameters == held.version(version)["parameters"]
        assert held.show(Layers(version=version)).root.macs == held.version(version)["macs"]
    assert [layer.name for layer in held.show(Layers(version="@base", layers="2")).marked] == ["2"]


@pytest.mark.slow
def test_of_an_onnx_version_its_weights_are_reported():
    held = session()
    held.run("convert onnx", label="onnx")
    shown = held.show(Layers())
    assert [layer.kind for layer in shown.root.parts][:1] == ["Gemm 16 x 4"]
    assert sum(layer.parameters for layer in shown.root.parts) == shown.root.parameters == held.head["parameters"]
    assert shown.root.macs == held.head["macs"]
    assert re.search(r"Gemm 16 x 4 +64 +", repr(shown))

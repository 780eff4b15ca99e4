"""Programs of torch.export: what a version writes runs with torch alone, on batches of any size, with the model's outputs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from kdkit import Batch, KdError, Session
from kdkit.backends.exported_program import read_program, write_program
from kdkit.models.output_comparison import find_difference
from kdkit.testing import zoo


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "two_heads", "cnn", "depthwise", "lstm", "tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_a_program_has_the_models_outputs_on_batches_of_any_size(name, tmp_path):
    model, batch = zoo.make(name).eval(), zoo.batch(name)
    write_program(model, tmp_path / "net.pt2", batch)
    program = read_program(tmp_path / "net.pt2")
    for items in (1, 3, 5):
        some = batch[:items]
        assert find_difference(model, program, Batch(some.args, some.kwargs)) == ""


def test_a_program_keeps_half_precision_and_the_mode_of_the_model(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).bfloat16().train()
    write_program(model, tmp_path / "net.pt2", Batch((torch.zeros(1, 4, dtype=torch.bfloat16),)))
    assert model.training
    assert read_program(tmp_path / "net.pt2")(torch.zeros(6, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_forward_that_depends_on_values_is_refused_without_a_print_of_its_graph(tmp_path, capsys):
    class Jumps(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(KdError, match="Jumps can't be exported as a program") as caught:
        write_program(Jumps(), tmp_path / "net.pt2", Batch((torch.ones(2, 3),)))
    assert any("torch.where" in hint for hint in caught.value.hints)
    assert capsys.readouterr().out == ""


class Counts(nn.Linear):
    def forward(self, x):
        return super().forward(x) * len(x)


class Compares(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (2 if x.shape[0] > 3 else 1)


class Fixes(nn.Linear):
    def forward(self, x):
        return super().forward(x).view(4, 1)


@pytest.mark.parametrize(("kind", "says"), [(Compares, "does not take 1 items"), (Fixes, "runs on 4 items and not on 1")])
def test_a_forward_that_fixes_the_batch_size_is_refused_with_what_to_write(kind, says, tmp_path):
    with pytest.raises(KdError, match=says) as caught:
        write_program(kind(2, 1), tmp_path / "net.pt2", Batch((torch.ones(4, 2),)))
    assert any("fixes the batch size" in hint for hint in caught.value.hints)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("items", [1, 4])
def test_a_forward_that_computes_with_the_number_of_items_is_exported_or_refused(items, tmp_path):
    model = Counts(2, 1)
    try:
        write_program(model, tmp_path / "net.pt2", Batch((torch.ones(items, 2),)))
    except KdError:
        return
    assert find_difference(model, read_program(tmp_path / "net.pt2"), Batch((torch.ones(7, 2),))) == ""


@pytest.fixture
def session():
    torch.manual_seed(0)
    return Session(zoo.mlp(), eval=(zoo.batch("mlp").args[0], zoo.batch("mlp").labels), measures=())


ALONE = """
import sys, torch
x = torch.load(sys.argv[2])
print(torch.export.load(sys.argv[1]).module()(x).tolist())
assert not any(name.partition(".")[0] == "kdkit" for name in sys.modules)
"""


@pytest.mark.slow
def test_a_version_runs_in_a_process_without_kdkit(session, tmp_path):
    path = session.export(tmp_path / "net.pt2")
    x = zoo.batch("mlp").args[0][:3]
    torch.save(x, tmp_path / "x.pt")
    found = subprocess.run([sys.executable, "-I", "-c", ALONE, str(path), str(tmp_path / "x.pt")], capture_output=True, text=True, check=True)
    torch.testing.assert_close(torch.tensor(eval(found.stdout)), session.head.model(x))


def test_another_file_is_replaced_only_on_demand(session, tmp_path):
    (path := tmp_path / "net.pt2").write_bytes(b"before")
    with pytest.raises(KdError, match="exists"):
        session.export(path)
    assert path.read_bytes() == b"before"
    session.export(path, force=True)
    assert read_program(path)(zoo.batch("mlp").args[0]).shape == (8, zoo.CLASSES)
    assert [each.name for each in tmp_path.iterdir()] == ["net.pt2"]


def test_a_graph_of_onnx_is_refused_with_what_can_be_exported(session, tmp_path):
    session.run("convert onnx")
    with pytest.raises(KdError, match="an ONNX graph, which torch can't export"):
        session.export(tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_a_session_without_data_names_what_to_give(tmp_path):
    with pytest.raises(KdError, match="needs one batch of inputs"):
        Session(zoo.mlp(), measures=()).export(tmp_path / "net.pt2")

"""Bad input, case by case: one message that says what was wrong and what to do, and the session as it was."""

import json
import os
import pickle

import pytest
import torch
from torch import nn

from kdkit import KdError, Session
from tests.fixtures import zoo

QUICK = ("quality", "parameters", "size")


def pairs(items=8):
    batch = zoo.batch("mlp")
    return batch.args[0][:items], batch.labels[:items]


@pytest.fixture
def session():
    return Session(zoo.mlp(), train=pairs(), eval=pairs(), measures=QUICK)


LINES = {
    "purne channels": ("no family 'purne'", "did you mean prune?"),
    "prune chanels": ("no technique 'chanels' in prune", "did you mean channels?"),
    "prune channels --ratoi 0.5": ("prune channels has no option --ratoi", "did you mean --ratio?"),
    "prune channels --ratio much": ("--ratio 'much' is not a number", ""),
    "prune channels --ratio 1.5": ("--ratio 1.5: input should be less than", "--ratio:"),
    "prune channels --ratio": ("--ratio needs a value", "--ratio:"),
    "prune channels --importance l3": ("--importance 'l3'", "--importance:"),
    "prune channels 0.5": ("'0.5' is not an option", "--name value"),
    "distill soft --teacher nobody": ("needs a model, and the session has none of that name", "%kd set --nobody {nobody}"),
    "distill soft --teacher base": ("needs a model, and the session has none of that name", "the version of that name is @base"),
    "tune finetune --data nothing": ("needs data, and the session has none of that name", "%kd set --nothing {nothing}"),
    "distill soft --teacher @nowhere": ("no version @nowhere", "versions: @base"),
    "tune finetune --learning-rate 1e30 --optimizer sgd --steps 5": ("tune finetune", "learning rate"),
    "quantize static\nprune channels": ("prune channels (step 2) needs", "put prune channels before quantize static (step 1)"),
    "peft merge": ("needs adapters attached, which the model has not", "made by: peft lora"),
}
"""Line -> (what the message says, what a hint says)."""


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_line_says_what_and_what_to_do_and_changes_nothing(session, line):
    before, (message, hint) = session.history, LINES[line]
    with pytest.raises(KdError) as caught:
        session.run(line)
    assert message in caught.value.message
    assert any(hint.lower() in stated.lower() for stated in ("", *caught.value.hints)), caught.value.hints
    assert session.history is before


def test_a_version_that_is_not_there_is_refused_with_those_that_are(session):
    with pytest.raises(KdError, match="no version @slim") as caught:
        session.run("prune channels", on="@slim")
    assert "versions: @base" in caught.value.hints


@pytest.mark.parametrize("empty", [[], torch.utils.data.DataLoader([]), (torch.zeros(0, 16), torch.zeros(0)), iter(())])
def test_empty_data_is_refused(empty):
    with pytest.raises(KdError, match=r"--train: .*(empty|no )"):
        Session(zoo.mlp(), train=empty, measures=())


def test_missing_labels_are_named(session):
    session.set(train=pairs()[0])
    with pytest.raises(KdError, match="needs labels, and train has none"):
        session.run("tune finetune --steps 1")
    with pytest.raises(KdError, match="needs labels, and train has none") as caught:
        session.run("distill soft --steps 1")
    assert any("--no-labels" in hint for hint in caught.value.hints)


def test_missing_data_is_named():
    with pytest.raises(KdError, match="and the session has none of that name") as caught:
        Session(zoo.mlp(), measures=()).run("tune finetune --steps 1")
    assert "%kd set --train {train}" in caught.value.hints


class Two(nn.Module):
    """A model whose forward needs two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, image, question):
        return self.linear(image) + question


def test_a_model_whose_forward_needs_other_inputs_is_reported_with_its_signature():
    with pytest.raises(KdError, match="question"):
        Session(Two(), eval=pairs(), measures=())


def test_inputs_of_the_wrong_width_are_reported_before_anything_runs():
    with pytest.raises(KdError, match="7"):
        Session(zoo.mlp(), eval=(torch.randn(4, 7), torch.zeros(4).long()), measures=())


@pytest.mark.slow
def test_a_model_that_is_quantized_already_is_refused_by_what_can_not_follow(session):
    session.run("quantize dynamic")
    before = session.history
    for line in ("quantize static", "quantize dynamic", "prune channels", "tune finetune --steps 1", "decompose svd", "peft lora --steps 1"):
        with pytest.raises(KdError, match="quantize dynamic|which convert onnx") as caught:
            session.run(line)
        assert caught.value.hints
    assert session.history is before


def test_a_model_quantized_by_torch_is_seen_to_be_so():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.ao.quantization.quantize_dynamic(zoo.mlp(), {nn.Linear}, torch.qint8)
    session = Session(net, eval=pairs(), measures=QUICK)
    with pytest.raises(KdError, match="needs .*which the model has not"):
        session.run("prune channels")


def test_a_loss_that_is_no_number_stops_the_stage_with_the_step(session):
    session.set(loss=lambda prediction, labels: prediction.sum(1) * float("nan"))
    before = session.history
    with pytest.raises(KdError, match="(?i)nan|finite") as caught:
        session.run("tune finetune --steps 3")
    assert caught.value.hints
    assert session.history is before


@pytest.fixture
def saved(session, tmp_path):
    session.run("decompose svd --ratio 0.4 --skip head", label="thin")
    return session.save(tmp_path / "thin", "@thin")


def damage(folder, how):
    weights, head = folder / "weights.safetensors", folder / "kd.json"
    if how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "truncated json":
        head.write_text(head.read_text()[:-50])
    elif how == "newer schema":
        head.write_text(json.dumps(json.loads(head.read_text()) | {"schema": 999}))
    elif how == "pickle beside":
        (folder / "model.pt").write_bytes(pickle.dumps({"a": 1}))
    elif how == "pickle inside":
        weights.write_bytes(pickle.dumps({"a": 1}))
    elif how == "changed weights":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == "missing weights":
        weights.unlink()


DAMAGE = {
    "truncated weights": "weights.safetensors",
    "truncated json": "kd.json",
    "newer schema": "newer",
    "pickle beside": "pickle",
    "pickle inside": "(?i)pickle|checksum|size|bytes",
    "changed weights": "(?i)checksum|changed|sha",
    "missing weights": "weights.safetensors",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_folder_is_refused_and_the_session_is_as_it_was(session, saved, how):
    damage(saved, how)
    before = session.history
    with pytest.raises(KdError, match=DAMAGE[how]) as caught:
        session.load(saved)
    assert caught.value.hints
    assert session.history is before


def test_a_folder_that_does_not_fit_the_skeleton_is_refused(session, saved):
    before = session.history
    with pytest.raises(KdError) as caught:
        session.load(saved, skeleton=zoo.cnn())
    assert caught.value.hints
    assert session.history is before


def test_a_folder_that_is_not_there_is_reported(session, tmp_path):
    with pytest.raises(KdError, match="nowhere"):
        session.load(tmp_path / "nowhere")


def test_somebody_elses_folder_is_not_replaced(session, tmp_path):
    (tmp_path / "theirs.txt").write_text("theirs")
    with pytest.raises(KdError, match=str(tmp_path)):
        session.save(tmp_path)
    assert (tmp_path / "theirs.txt").read_text() == "theirs"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/proc/nothing/thin", "/dev/null/thin"])
def test_a_place_that_can_not_be_written_is_reported(session, path):
    with pytest.raises(KdError, match=r"can't|cannot|not"):
        session.save(path)
    with pytest.raises(KdError, match="can't write"):
        session.export(path + ".onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_reported(session, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(KdError, match="can't|not"):
        session.save(tmp_path / "thin")


def test_an_export_of_an_unknown_form_names_the_known_ones(session, tmp_path):
    with pytest.raises(KdError, match=r"model\.tflite: there is no export with that suffix") as caught:
        session.export(tmp_path / "model.tflite")
    assert any(".onnx" in hint for hint in caught.value.hints)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "a", True])
def test_a_seed_that_is_no_whole_number_is_refused_before_anything_runs(session, seed):
    for work in (lambda: session.run("tune finetune --steps 1", seed=seed), lambda: session.set(seed=seed)):
        with pytest.raises(KdError, match="is not a whole number from 0 up"):
            work()
    assert len(session.versions) == 1


@pytest.mark.parametrize("name", ["--3", "²", "-", "3.0", ""])
def test_what_names_no_version_is_reported(session, name):
    with pytest.raises(KdError, match="no version @"):
        session.version(name)


@pytest.mark.parametrize("label", ["a b", "", 3, "head", "@x"])
def test_a_label_that_no_line_could_name_is_refused(session, label):
    with pytest.raises(KdError, match="can't be a label"):
        session.keep("@base", label)
    with pytest.raises(KdError, match="can't be a label"):
        Session(zoo.mlp(), label=label)


@pytest.mark.parametrize("given", [{"task": 3}, {"loss": 3}, {"metric": "accuracy"}])
def test_a_task_or_function_that_is_none_leaves_the_session_as_it_was(session, given):
    task = session.task
    with pytest.raises(KdError, match="is not a task|can't be called"):
        session.set(**given)
    assert session.task is task

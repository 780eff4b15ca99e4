"""Checkpoints: only what the index lists is replaced or deleted, and nothing of a file is believed."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from torch import nn

from kdkit.errors import KdError
from kdkit.training.checkpoint import Checkpoint, unpack

FACTS = {"epoch": 1, "step": 4, "curve": [[4, {"loss": 1.0}]], "validation": [], "optimizer": {}, "scaler": None, "judge": None}


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder, {"seed": 0, "model": "abc"})


def written(folder: Path, epochs: int = 1) -> Path:
    for epoch in range(1, epochs + 1):
        checkpoint(folder).write(epoch, {"model/weight": torch.full((3,), float(epoch))}, FACTS | {"epoch": epoch})
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["epoch-9.safetensors", "epoch-9.safetensors.part", "training.json.part", "notes.txt", ".hidden", "sub/thesis"])
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_folder_with_files_of_others_is_refused_and_they_stay(tmp_path: Path, name: str, epochs: int) -> None:
    written(tmp_path, epochs)
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"precious")
    before = names(tmp_path)
    with pytest.raises(KdError, match="which this checkpoint did not write"):
        checkpoint(tmp_path).write(epochs + 1, {"model/weight": torch.zeros(3)}, FACTS)
    assert mine.read_bytes() == b"precious"
    assert names(tmp_path) == before


def test_a_users_file_of_the_name_of_the_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"lr": 0.1}')
    with pytest.raises(KdError, match="is damaged"):
        written(tmp_path)
    assert (tmp_path / "training.json").read_text() == '{"lr": 0.1}'


@pytest.mark.parametrize("name", ["thesis", "../thesis", "/etc/passwd", "epoch-1.safetensors/../../thesis", "epoch-1.safetensors\n"])
@pytest.mark.parametrize("field", ["tensors", "files"])
def test_an_index_that_lists_other_files_is_refused_and_nothing_is_deleted(tmp_path: Path, name: str, field: str) -> None:
    folder = written(tmp_path / "kept")
    (tmp_path / "thesis").write_text("precious")
    (folder / "thesis").write_text("precious")
    index = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(index | {field: [name] if field == "files" else name}))
    for act in (checkpoint(folder).read, checkpoint(folder).remove, lambda: written(folder)):
        with pytest.raises(KdError, match=f"is damaged: {field}"):
            act()
    assert (tmp_path / "thesis").exists()
    assert (folder / "thesis").exists()


@pytest.mark.parametrize("at", ["announced", "half-written", "indexed"])
def test_a_run_that_was_killed_leaves_the_last_epoch_and_a_folder_that_can_be_used_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    folder = written(tmp_path)
    index = json.loads((folder / "training.json").read_text())
    listed = ["epoch-1.safetensors", "epoch-2.safetensors"]
    if at == "half-written":
        (folder / ".epoch-2.safetensors.kdkit-new-999999999-0").write_bytes(b"half")
    if at == "indexed":
        written(folder, 2)
        index = json.loads((folder / "training.json").read_text())
        (folder / "epoch-1.safetensors").write_bytes(b"not deleted yet")
    (folder / "training.json").write_text(json.dumps(index | {"files": listed}))
    epoch = 2 if at == "indexed" else 1
    tensors, facts = checkpoint(folder).read()
    assert (facts.epoch, tensors["model/weight"].tolist()) == (epoch, [epoch] * 3)
    checkpoint(folder).write(3, {"model/weight": torch.zeros(3)}, FACTS)
    assert names(folder) == ["epoch-3.safetensors", "training.json"]


def test_a_change_of_any_byte_of_the_tensors_is_found(tmp_path: Path) -> None:
    path = written(tmp_path) / "epoch-1.safetensors"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(KdError, match=r"the checksum of epoch-1.safetensors differs"):
            checkpoint(tmp_path).read()


PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=4),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(some.data())
@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_index_is_read_or_refused_in_one_error(tmp_path: Path, data: Any) -> None:
    folder = tmp_path / "kept"
    if not folder.exists():
        written(folder, 1)
    index = json.loads((folder / "training.json").read_text())
    place: Any = index
    while True:
        key = data.draw(some.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(some.booleans()):
            break
        place = place[key]
    place[key] = data.draw(PLAIN)
    changed = tmp_path / "changed"
    changed.mkdir(exist_ok=True)
    (changed / "training.json").write_text(json.dumps(index))
    (changed / "epoch-1.safetensors").write_bytes((folder / "epoch-1.safetensors").read_bytes())
    began = time.perf_counter()
    with contextlib.suppress(KdError):
        checkpoint(changed).read()
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "5", "\x00", '{"kdkit_training": 1}', '{"kdkit_training": "x", "identity": {}}'])
def test_an_index_that_is_none_is_one_message(tmp_path: Path, text: str) -> None:
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(KdError, match=r"is damaged|there is no checkpoint|of another training") as caught:
        checkpoint(tmp_path).read()
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("value", [1.0, torch.zeros(()), torch.zeros(3)], ids=["number", "scalar", "other shape"])
def test_an_optimizer_state_that_is_not_of_its_weights_shape_is_refused(value):
    weight = nn.Parameter(torch.zeros(2, 2))
    state = {"0.exp_avg": value, "0.step": 1.0}
    tensors = {name: item for name, item in state.items() if isinstance(item, torch.Tensor)}
    with pytest.raises(ValueError, match="exp_avg is not of its weight's shape"):
        unpack(torch.optim.Adam([weight]), tensors, {name: item for name, item in state.items() if name not in tensors})


@pytest.mark.parametrize("name", ["training.json", "epoch-1.safetensors", "epoch-2.safetensors"])
def test_a_link_in_the_place_of_a_file_is_refused_and_its_target_stays(tmp_path: Path, name: str) -> None:
    folder, thesis = written(tmp_path / "kept"), tmp_path / "thesis"
    index = json.loads((folder / "training.json").read_text())
    index["files"] = ["epoch-1.safetensors", "epoch-2.safetensors"]
    (folder / "training.json").write_text(json.dumps(index))
    thesis.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"precious")
    before = thesis.read_bytes()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(thesis)
    with pytest.raises(KdError, match=f"{name} in the folder .* is a link, or no file"):
        checkpoint(folder).write(2, {"model/weight": torch.zeros(3)}, FACTS | {"epoch": 2})
    assert thesis.read_bytes() == before


def test_a_pipe_in_the_place_of_the_tensors_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "epoch-1.safetensors").unlink()
    os.mkfifo(folder / "epoch-1.safetensors")
    with pytest.raises(KdError, match="is a link, or no file"):
        checkpoint(folder).read()


@pytest.mark.skipif(not hasattr(os.stat_result, "st_blocks"), reason="this system does not tell how much of a file is stored")
def test_a_sparse_file_of_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.truncate(written(tmp_path / "run") / "epoch-1.safetensors", 2**40)
    with pytest.raises(KdError, match="is a sparse file: it has 1,099,511,627,776 bytes"):
        checkpoint(tmp_path / "run").read()


def test_what_a_library_left_of_a_killed_write_is_deleted_by_the_next(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    rest = folder / ".epoch-1.safetensors.kdkit-new-999999999-0"
    rest.mkdir()
    (rest / ".tmpJLVITV").write_bytes(b"half")
    written(folder, epochs=2)
    assert names(folder) == ["epoch-2.safetensors", "training.json"]

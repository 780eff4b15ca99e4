"""Scratch folders: made when they are needed, and removed when their owner or their process is gone."""

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kdkit import Session
from kdkit.guards.scratch import ScratchFolder, make_scratch, sweep_scratch
from tests.fixtures import zoo


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def gone():
    """The number of a process that no longer runs."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def of_process(name: str, number: int) -> str:
    host, _, token = name.removeprefix("kdkit-").split("-")
    return f"kdkit-{host}-{number}-{token}"


def test_a_session_makes_no_folder_that_it_does_not_need(temporary):
    batch = zoo.batch("mlp")
    session = Session(zoo.mlp(), train=(batch.args[0], batch.labels), measures=())
    session.run("tune finetune --epochs 1")
    assert list(temporary.glob("kdkit*")) == []


@pytest.mark.slow
def test_a_folder_is_removed_with_its_owner(temporary):
    scratch = ScratchFolder()
    folder = scratch.make()
    (folder / "epoch").write_text("")
    assert folder.stat().st_mode & 0o777 == 0o700
    del scratch
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_the_folders_of_dead_processes_are_removed_when_a_new_one_is_made(temporary, gone):
    scratch = ScratchFolder()
    dead = temporary / of_process(scratch.path.name, gone)
    (dead / "inside").mkdir(parents=True)
    scratch.make()
    assert list(temporary.iterdir()) == [scratch.path]


def test_only_folders_of_our_own_naming_are_removed_and_no_link_is_followed(temporary, gone, tmp_path_factory):
    name = ScratchFolder().path.name
    precious = tmp_path_factory.mktemp("precious")
    (precious / "thesis").write_text("")
    (temporary / of_process(name, gone)).symlink_to(precious)
    kept = [f"kdkit-{gone}", f"kdkit-elsewhere-{gone}-{name[-16:]}", f"{of_process(name, gone)}.bak", of_process(name, os.getpid())]
    for each in kept:
        (temporary / each).mkdir()
    sweep_scratch(temporary)
    assert sorted(path.name for path in temporary.iterdir()) == sorted([*kept, of_process(name, gone)])
    assert (precious / "thesis").exists()


def test_a_forked_child_leaves_the_folder_alone(temporary):
    scratch = ScratchFolder()
    folder = scratch.make()
    child = os.fork()
    if not child:
        scratch.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert folder.is_dir()


def test_a_folder_of_any_name_is_made_with_its_parents(temporary):
    assert make_scratch(temporary / "a" / "b").is_dir()


def test_a_process_that_ends_leaves_nothing(temporary):
    code = "from kdkit.guards.scratch import ScratchFolder; a = ScratchFolder(); print(a.make())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()

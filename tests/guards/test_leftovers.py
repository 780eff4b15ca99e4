"""Temporary names: what a killed process left is told from what is in use."""

import os
import subprocess
import sys
import threading

from kdkit.guards.leftovers import find_abandoned, find_temporaries, is_running, release_name, remove_abandoned, temporary_name


def test_what_another_thread_writes_is_in_use_until_it_releases_the_name(tmp_path):
    target, made, go, done = tmp_path / "small", [], threading.Event(), threading.Event()

    def write():
        made.append(temporary_name(target))
        made[0].mkdir()
        done.set()
        go.wait()
        release_name(made[0])

    thread = threading.Thread(target=write)
    thread.start()
    done.wait()
    assert find_abandoned(target) == []
    assert find_temporaries(target) == made
    go.set()
    thread.join()
    assert find_abandoned(target) == made


def test_what_a_dead_process_left_is_abandoned_and_what_a_live_one_writes_is_not(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    path = tmp_path / f".small.kdkit-new-{process.pid}-0"
    path.mkdir()
    assert is_running(process.pid)
    assert find_abandoned(tmp_path / "small") == []
    process.communicate(b"\n")
    assert find_abandoned(tmp_path / "small") == [path]


def test_names_of_others_are_never_taken_for_temporary_ones(tmp_path):
    for name in (".small.kdkit-new-x-1", ".small.kdkit-new-1", "small.kdkit-new-1-1", f".other.kdkit-new-{os.getpid()}-1", ".small.kdkit-new-1-1.bak"):
        (tmp_path / name).mkdir()
    assert find_temporaries(tmp_path / "small") == []


def test_abandoned_files_and_folders_are_deleted_and_links_are_not_followed(tmp_path):
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "file").touch()
    target = tmp_path / "small"
    folder, file, link = (temporary_name(target) for _ in range(3))
    folder.mkdir()
    (folder / ".tmpAB12cd").touch()
    file.touch()
    link.symlink_to(tmp_path / "users")
    remove_abandoned(target)
    assert [path.name for path in tmp_path.iterdir()] == ["users"]
    assert (tmp_path / "users" / "file").exists()

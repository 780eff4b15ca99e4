"""Written files: another version's folder or file is replaced only when that is asked for."""

from __future__ import annotations

import pytest

from kdkit import KdError, Session
from tests.fixtures import zoo

WAYS = {"folder": "save", "small.yaml": "save", "small.onnx": "export"}
SLOW_ONNX = [*("folder", "small.yaml"), pytest.param("small.onnx", marks=pytest.mark.slow)]


def open_session(seed=0):
    batch = zoo.batch("mlp")
    return Session(zoo.mlp(seed), eval=(batch.args[0], batch.labels), measures=())


@pytest.fixture
def session():
    made = open_session()
    made.run("decompose svd --ratio 0.5", label="thin")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_ONNX)
def test_another_version_is_replaced_only_by_force(session, tmp_path, name):
    write = getattr(session, WAYS[name])
    path = write(tmp_path / name, "@thin")
    with pytest.raises(KdError, match="holds") as caught:
        write(path, "@base")
    assert "--force replaces it" in caught.value.hints
    write(path, "@base", force=True)
    write(path, "@base")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_ONNX)
def test_the_version_of_the_same_name_is_replaced_when_its_line_ran_again(session, tmp_path, name):
    write = getattr(session, WAYS[name])
    write(tmp_path / name, "@thin")
    session.run("decompose svd --ratio 0.7", label="thin")
    write(tmp_path / name, "@thin")


def test_the_same_version_of_another_kernel_is_replaced_and_another_is_not(session, tmp_path):
    session.save(tmp_path / "folder", "@base")
    open_session().save(tmp_path / "folder", "@base")
    with pytest.raises(KdError, match="holds @base, not this version"):
        open_session(seed=1).save(tmp_path / "folder", "@base")


def test_a_file_that_another_program_changed_is_not_the_session_s_own(session, tmp_path):
    session.save(tmp_path / "small.yaml", "@thin")
    (tmp_path / "small.yaml").write_bytes(b"something else")
    with pytest.raises(KdError, match="holds something else"):
        session.save(tmp_path / "small.yaml", "@thin")


def test_a_folder_that_kdkit_did_not_write_is_refused_by_force_too(session, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(KdError, match="kdkit did not write it"):
        session.save(tmp_path, force=True)

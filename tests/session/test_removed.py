"""Removed versions: what was dropped or replaced comes back, with its memory free meanwhile."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from kdkit import KdError, Session
from kdkit.session.removed import REPLACED
from tests.fixtures import zoo
from tests.fixtures.noise import Noise


@pytest.fixture
def session(offered):
    offered(Noise)
    batch = zoo.batch("mlp")
    return Session(zoo.mlp(), eval=(batch.args[0], batch.labels), measures=("parameters",))


def weights(version):
    return {name: tensor.clone() for name, tensor in version.model.state_dict().items()}


def assert_same(version, before):
    assert all(torch.equal(before[name], tensor) for name, tensor in version.model.state_dict().items())


def test_undo_right_after_drop_brings_the_version_back(session):
    before = weights(session.run("tune test-noise", label="one"))
    session.drop("@one")
    assert session.undo().name == "@one"
    assert_same(session.head, before)
    assert session.undo().name == "@base"


@pytest.mark.slow
def test_undo_later_goes_back_as_always_and_restore_still_works(session):
    before = weights(session.run("tune test-noise", label="one"))
    session.drop("@one")
    session.run("tune test-noise", label="two")
    assert session.undo().name == "@base"
    assert_same(session.restore("@one"), before)
    assert [version.name for version in session.versions] == ["@base", "@one", "@two"]


def test_a_version_comes_back_with_the_line_that_it_was_made_from(session):
    session.run("tune test-noise", label="one")
    before = weights(session.run("tune test-noise", label="two"))
    session.drop("@one")
    session.drop("@two")
    assert [version.name for version in session.versions] == ["@base"]
    assert_same(session.restore("@two"), before)
    assert session["@one"].model is None
    assert session.restore("@one").model is not None


def test_a_label_that_another_version_has_by_now_stays_there(session):
    session.run("tune test-noise", label="one")
    session.run("tune test-noise", label="one")
    assert session.restore().name == "@1"
    assert session["@one"].number == 2


def test_a_dropped_head_that_comes_back_at_once_is_the_head_again(session):
    session.run("tune test-noise", label="one")
    session.drop("@one")
    assert session.head.name == "@base"
    session.restore("@one")
    assert session.head.name == "@one"


def test_what_comes_back_after_other_versions_were_made_leaves_the_head(session):
    session.run("tune test-noise", label="one")
    session.drop("@one")
    session.run("tune test-noise", label="two")
    session.restore("@one")
    assert session.head.name == "@two"


def test_a_replaced_version_that_comes_back_leaves_the_head(session):
    session.run("tune test-noise", label="one")
    session.run("tune test-noise", label="one")
    session.restore()
    assert session.head.name == "@one"
    assert session.head.number == 2


@pytest.mark.slow
def test_the_memory_of_a_dropped_version_is_free_and_shared_again_when_it_is_back(session):
    model = weakref.ref(session.run("tune test-noise", label="one").model)
    session.drop("@one")
    gc.collect()
    assert model() is None
    back = session.restore()
    assert back.model.first.weight.data_ptr() == session["@base"].model.first.weight.data_ptr()


@pytest.mark.slow
def test_a_model_without_plain_weights_comes_back_too(session):
    made = session.run("convert onnx", label="onnx")
    session.drop("@onnx")
    assert session.restore("@onnx").model is made.model


def test_only_the_last_replaced_versions_are_kept_and_all_that_were_dropped(session):
    session.run("tune test-noise", label="kept")
    session.drop("@kept")
    for _ in range(REPLACED + 3):
        session.run("tune test-noise", label="one")
    assert len(session.removed) == REPLACED + 1
    assert session.removed[0].label == "kept"


def test_what_is_dropped_forever_does_not_come_back(session):
    session.run("tune test-noise", label="one")
    session.drop("@one", forever=True)
    with pytest.raises(KdError, match="nothing was removed"):
        session.restore("@one")


def test_a_message_about_a_removed_version_says_how_it_comes_back(session):
    session.run("tune test-noise", label="one")
    session.drop("@one")
    with pytest.raises(KdError, match="no version @one") as caught:
        session.version("@one")
    assert "it was removed: %kd restore @one brings it back" in caught.value.hints
    with pytest.raises(KdError, match="no removed version @two"):
        session.restore("@two")

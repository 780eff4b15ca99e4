"""What a session can be given is declared once: constructor, `set`, verbs and forms follow from it."""

from __future__ import annotations

import inspect

import pytest

import kdkit.notebook.verbs  # noqa: F401  # declares the verbs
from kdkit import KdError, Session
from kdkit.notebook.verb import verbs
from kdkit.session.settings import DEFAULTS, SessionSettings, changed_settings, check_integer, check_names, role
from kdkit.stages.data_sources import DATA
from tests.fixtures import zoo

NAMES = [name for name in SessionSettings.model_fields if name != "others"]


def test_the_constructors_signature_shows_every_setting_with_its_default():
    parameters = inspect.signature(Session).parameters
    assert list(parameters) == ["model", "label", *NAMES, "objects"]
    assert {name: parameters[name].default for name in NAMES} == {name: SessionSettings.model_fields[name].default for name in NAMES}
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_constructors_docstring_explains_the_setting(name):
    assert f"{name}: {SessionSettings.model_fields[name].description}." in inspect.getdoc(Session)


def test_the_verbs_use_and_set_take_what_the_constructor_takes():
    for word in ("use", "set"):
        assert set(NAMES) <= set(verbs()[word].model_fields)


def test_set_has_no_default_that_could_be_taken_for_the_present_value():
    assert {verbs()["set"].model_fields[name].default for name in NAMES} == {None, ()}


def test_a_session_begins_with_the_declared_defaults():
    assert Session(zoo.mlp(), measures=()).settings == dict(DEFAULTS) | {"measures": ()}


def test_the_declared_data_sets_are_those_that_stages_look_for():
    assert tuple(name for name in NAMES if role(name) == "data") == DATA


def test_every_declared_name_is_either_a_setting_or_an_object():
    assert set(DEFAULTS) | {*DATA, "teacher", "tokenizer"} == set(NAMES)


def test_none_counts_as_not_given_to_the_constructor():
    assert Session(zoo.mlp(), seed=None, backend=None, eval=None, measures=()).settings["seed"] == 0


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", True), ("seed", 2**63), ("seed", "1"), ("batch_size", 0), ("batch_size", 1.5)])
def test_an_integer_setting_keeps_its_declared_bound(name, value):
    with pytest.raises(KdError, match="is not a whole number from"):
        check_integer(name, value)


def test_changed_settings_leave_the_settings_before_as_they_were():
    before = dict(DEFAULTS)
    assert changed_settings(before, {"seed": 3, "measures": "size", "eval": "an object"}) == before | {"seed": 3, "measures": ("size",)}
    assert before == dict(DEFAULTS)


def test_a_name_nearly_that_of_data_is_refused_only_where_there_is_no_data():
    check_names({"eval": 1, "evaluate": 2})
    check_names({"pool": 2, "teacher": 3})
    with pytest.raises(KdError, match="evaluate= is not one of the names"):
        check_names({"evaluate": 2})


@pytest.mark.parametrize("name", ["measures", "trackers"])
@pytest.mark.parametrize("value", [4, (4,), {"size": 1}])
def test_names_must_be_text(name, value):
    with pytest.raises(KdError, match=f"--{name} .* is not a list of names"):
        changed_settings(DEFAULTS, {name: value})


@pytest.mark.parametrize("name", ["test", "val", "dev"])
def test_a_name_of_others_for_held_out_data_is_refused_with_both_names_of_ours(name):
    batch = zoo.batch("mlp")
    data = (batch.args[0], batch.labels)
    session = Session(zoo.mlp(), train=data, measures=())
    for give in (lambda: Session(zoo.mlp(), train=data, **{name: data}), lambda: session.set(**{name: data})):
        with pytest.raises(KdError, match=f"--{name} is not a name under which a session looks for data") as caught:
            give()
        assert [hint.partition(":")[0] for hint in caught.value.hints] == ["--eval", "--validation"]
    session.set(**{name: None})


@pytest.mark.parametrize(("name", "default"), [("seed", "0"), ("batch_size", "32"), ("backend", "cpu")])
def test_a_setting_that_always_has_a_value_is_not_turned_off(name, default):
    option = name.replace("_", "-")
    with pytest.raises(KdError, match=f"^--{option} can't be turned off") as caught:
        changed_settings(DEFAULTS, {name: None})
    assert caught.value.hints == (f"its default: %kd set --{option} {default}",)
    assert changed_settings(DEFAULTS, {"measures": None, "trackers": None})["measures"] is None

"""KdError: what is wrong, where, and what to do next."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.errors import LONGEST_MESSAGE, Cancelled, KdError, describe_exception, did_you_mean, read_message


def test_an_error_shows_its_message_and_its_hints_without_empty_ones():
    assert str(KdError("no layer 'x'", "", "did you mean y?")) == "no layer 'x'\n  hint: did you mean y?"


def test_an_error_in_a_notebook_has_no_traceback():
    assert KdError("no data", "%kd set")._render_traceback_() == ["\x1b[1mKdError\x1b[0m: no data", "  hint: %kd set"]


def test_the_place_of_an_error_is_added_once():
    error = KdError("no data").inside("tune finetune").inside("tune finetune")
    assert error.message == "tune finetune: no data"


def test_more_hints_are_added_once():
    assert KdError("no data", "one").with_hints("two", "one", "").hints == ("one", "two")


def test_a_copied_or_pickled_error_is_the_same():
    error = Cancelled("stopped", "--resume").inside("tune finetune").with_hints("again")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin)) == (Cancelled, str(error))


@given(st.lists(st.text("abcdef", min_size=4), min_size=1, unique=True))
def test_a_known_word_is_its_own_nearest(words):
    assert words[0] in did_you_mean(words[0], words)


def test_a_word_that_is_near_nothing_has_no_hint():
    assert did_you_mean("zzz", ["channels", "heads"]) == ""


class Mute(ValueError):
    """An error whose message can't be written."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\x1b[2Jb"), r"ValueError: a\x1b[2Jb"),
        (Mute(), "Mute: its message can't be written (RuntimeError)"),
        (KeyError(), "KeyError, without a message"),
    ],
)
def test_an_error_of_others_is_described_whatever_its_message_holds(error, text):
    assert describe_exception(error) == text


def test_a_message_without_end_is_cut():
    assert len(read_message(ValueError("x" * 10**6))) == LONGEST_MESSAGE + 4


def test_the_class_of_an_error_is_escaped_and_an_exit_within_its_message_is_described():
    evil = type("evil\x1b[2J\nname", (ValueError,), {})
    assert describe_exception(evil("x")) == r"evil\x1b[2J\nname: x"

    class Leaves(ValueError):
        def __str__(self) -> str:
            raise SystemExit

    assert describe_exception(Leaves()) == "Leaves: its message can't be written (SystemExit)"

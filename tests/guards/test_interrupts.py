"""Interrupts: the user's Ctrl-C is distinct from a KeyboardInterrupt that a plugin raises."""

from __future__ import annotations

import signal
import time

import pytest

from kdkit.guards.interrupts import raise_interrupt

HOME = __name__.partition(".")[0]


def caught(call):
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def raises():
    raise KeyboardInterrupt


def interrupted():
    signal.raise_signal(signal.SIGINT)
    time.sleep(1)


def hides():
    try:
        interrupted()
    except KeyboardInterrupt:
        raise ImportError("can't be loaded")  # noqa: B904


def exits():
    try:
        interrupted()
    finally:
        raise SystemExit(3)


@pytest.mark.parametrize("call", [interrupted, hides, exits])
def test_an_interrupt_of_the_user_is_raised_also_where_it_became_another_error(call):
    with pytest.raises(KeyboardInterrupt):
        raise_interrupt(caught(call), HOME)


@pytest.mark.parametrize("home", ["another_package", "kdkit"])
def test_one_that_another_package_raises_counts_as_the_users(home):
    with pytest.raises(KeyboardInterrupt):
        raise_interrupt(caught(raises), home)


def test_one_that_the_plugin_raises_itself_is_its_own_error():
    raise_interrupt(caught(raises), HOME)


def test_an_interrupt_that_was_being_handled_before_the_call_is_not_the_calls():
    handled = caught(interrupted)

    def fails():
        try:
            raise handled
        except KeyboardInterrupt:
            raise ValueError("of the call")  # noqa: B904

    raise_interrupt(caught(fails), HOME, handled)

"""Events: one wrapper notifies plugins and trackers of a stage's run, however it ends."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from kdkit import KdError, Stage, hookimpl
from kdkit.errors import Cancelled
from kdkit.plugins.manager import manager
from kdkit.session.events import Event, with_events
from kdkit.stages import LocalChannel, Progress


class Mine(Stage):
    """A stage."""

    id: ClassVar = "prune.test-mine"


class Tracker:
    name = "test"

    def __init__(self) -> None:
        self.events: list[Event] = []

    def log(self, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def tracker() -> Tracker:
    return Tracker()


def run_with(tracker: Tracker, run: Any, channel: Any = None) -> Any:
    return with_events(Mine(), channel or LocalChannel(), [tracker], run)


def test_a_run_that_succeeds_starts_and_finishes_with_its_version(tracker) -> None:
    assert run_with(tracker, lambda channel: "version") == "version"
    assert [(event.kind, event.version) for event in tracker.events] == [("started", None), ("finished", "version")]


def test_progress_reaches_the_user_first_and_then_the_trackers(tracker) -> None:
    order: list[str] = []
    tracker.log = lambda event: order.append(event.kind)  # type: ignore[method-assign]
    run_with(tracker, lambda channel: channel.progress(Progress("prune mine", 1, 2)), LocalChannel(lambda progress: order.append("user")))
    assert order == ["started", "user", "progress", "finished"]


@pytest.mark.parametrize(("error", "kind"), [(KdError("no"), "failed"), (Cancelled("stop"), "cancelled"), (KeyboardInterrupt(), "cancelled"), (SystemExit(3), "failed")])
def test_a_run_that_raises_is_reported_with_its_error_and_raises_it(tracker, error, kind) -> None:
    def run(channel):
        raise error

    with pytest.raises(type(error)):
        run_with(tracker, run)
    assert [(event.kind, event.error) for event in tracker.events] == [("started", None), (kind, error)]


def test_the_stage_can_be_cancelled_through_the_wrapper(tracker) -> None:
    channel = LocalChannel()
    channel.cancel()
    assert run_with(tracker, lambda inner: inner.cancelled(), channel) is True


def test_plugins_are_notified_as_trackers_are(tracker) -> None:
    class Listener:
        @hookimpl
        def kdkit_event(self, event: Event) -> None:
            received.append(event)

    received: list[Event] = []
    manager().register(Listener(), "test-listener")
    try:
        run_with(tracker, lambda channel: None)
    finally:
        manager().unregister(name="test-listener")
    assert received == tracker.events

"""Tasks by name, including those of plugins."""

from __future__ import annotations

import pytest

from kdkit import hookimpl
from kdkit.errors import KdError
from kdkit.plugins.manager import manager
from kdkit.session.task_lookup import task, tasks
from kdkit.tasks import Regression


def test_tasks_are_found_by_name_and_plugins_bring_their_own() -> None:
    class Plugin:
        @hookimpl
        def kdkit_tasks(self) -> list:
            return [Regression("depth")]

    assert {"classification", "token-classification", "multilabel", "regression", "embedding", "causal-lm"} <= set(tasks())
    manager().register(Plugin(), "depth")
    try:
        assert task("depth").name == "depth"
    finally:
        manager().unregister(name="depth")
    with pytest.raises(KdError, match="no task 'depth'"):
        task("depth")


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(KdError, match="no task 'clasification'") as caught:
        task("clasification")
    assert "classification" in caught.value.hints[0]

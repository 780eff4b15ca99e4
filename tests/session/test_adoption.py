"""Adoption: plugins convert data that kdkit does not know."""

from __future__ import annotations

from typing import Any

import pytest

from kdkit import hookimpl
from kdkit.data import Data
from kdkit.errors import KdError
from kdkit.plugins.manager import manager
from kdkit.session.adoption import adopt_data
from tests.fixtures.datasets import Vault, whole


class Keeper:
    def __init__(self, answer: Any):
        self.answer = answer

    @hookimpl
    def kdkit_adopt_data(self, obj: Any, batch_size: int) -> Any:
        return self.answer(obj, batch_size) if isinstance(obj, Vault) else None


@pytest.fixture
def keeper() -> Any:
    def register(answer: Any) -> None:
        plugin = Keeper(answer)
        manager().register(plugin, "keeper")

    yield register
    if manager().has_plugin("keeper"):
        manager().unregister(name="keeper")


def test_a_plugin_adopts_what_the_kit_does_not_know(keeper: Any) -> None:
    keeper(lambda vault, batch_size: Data(lambda: [vault.secret], "a vault"))
    assert whole(adopt_data(Vault()))[1].tolist() == [0, 1, 2, 3]


def test_a_plugin_that_returns_no_data_is_an_error(keeper: Any) -> None:
    keeper(lambda vault, batch_size: 7)
    with pytest.warns(UserWarning, match="keeper"), pytest.raises(KdError, match="a Vault is not data") as caught:
        adopt_data(Vault())
    assert any("keeper" in hint for hint in caught.value.hints)

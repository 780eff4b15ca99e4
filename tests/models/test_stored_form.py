"""The stored form of a version: its values are checked where they are written."""

import pytest
import torch

from kdkit import KdError
from kdkit.models import Storage


def test_one_pattern_may_be_given_as_a_string():
    assert Storage("runs", layers="10").layers == ("10",)


@pytest.mark.parametrize(("codec", "options", "message"), [(5, {}, "named by a string, not by a int"), ("runs", {"table": torch.zeros(1)}, "are not plain data")])
def test_a_storage_that_could_not_be_saved_is_refused_at_once(codec, options, message):
    with pytest.raises(KdError, match=message):
        Storage(codec, options=options)


def test_a_storage_is_restored_from_its_plain_data():
    storage = Storage("runs", layers=("1",), options={"block": 8})
    assert Storage.from_data(storage.as_data()) == storage

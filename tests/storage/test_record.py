"""A record names the first field that does not fit."""

import pytest

from kdkit.parameters.schema import Record
from kdkit.storage import read_record


class Sample(Record):
    count: int
    names: dict[str, int] = {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{}", "count is missing"),
        (b'{"count": "1"}', "count is '1': it should be a valid integer"),
        (b'{"count": 1, "more": 2}', "more is 2: extra inputs are not permitted"),
        (b'{"count": 1, "names": {"a\\nb": "x"}}', r"names.a\\nb is 'x'"),
        (b"[1]", r"is \[1\]: it should be an object|is \[1\]"),
        (b"[" * 100_000, "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b'{"count": ' + b"9" * 10_000 + b"}", "it is not JSON"),
    ],
)
def test_the_first_wrong_field_is_one_line(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_record(Sample, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_record_that_fits_is_read() -> None:
    assert read_record(Sample, b'{"count": 1, "names": {"a": 2}}') == Sample(count=1, names={"a": 2})

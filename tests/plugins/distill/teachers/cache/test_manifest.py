"""The manifest of a cache: each field is validated, whatever a file states about itself."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from kdkit.errors import KdError
from kdkit_distill.teachers.cache.checksums import BLOCK, BlockReader, BlockWriter
from kdkit_distill.teachers.cache.file import Reader, Writer
from kdkit_distill.teachers.cache.items import keys
from kdkit_distill.teachers.cache.manifest import Manifest
from tests.fixtures.caches import forge


def filled(path: Path, rows: int = 6) -> Path:
    """A cache of (rows, 3) logits and one feature."""
    import torch

    from kdkit import Batch
    from kdkit_distill.signals import Signal

    values = torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3)
    with Writer(path, "fp32") as writer:
        writer.add(keys(Batch((values,))), None, Signal(values, {"first": values * 2}))
        writer.finish({"teacher": "t", "task": "classification", "layers": ["first"], "kept": "fp32", "top": None, "items": rows})
    return path


def read(path: Path) -> None:
    reader = Reader(path)
    reader.signal(np.arange(reader.manifest["rows"]), None)


def change(**fields: Any) -> Any:
    return lambda manifest: manifest | fields


COLUMN = {"name": "logits", "stored": "float32", "given": "float32", "shape": [3], "tokens": False, "bits": 0}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change(top=5), "top"),
        (change(top=[1]), "top"),
        (change(top=["a", "b"]), "top"),
        (change(top_k={"classes": "many", "temperature": 1.0}), "top_k.classes"),
        (change(top_k={"classes": 4, "temperature": 1.0}), "columns"),
        (change(rows="6"), "rows"),
        (change(rows=-1), "rows"),
        (change(rows=0), "rows"),
        (change(rows=7), "inconsistent"),
        (change(rows=2**39), "inconsistent|cut off"),
        (change(bytes=10**30), "bytes"),
        (change(bytes=True), "bytes"),
        (change(layers=5), "layers"),
        (change(layers=[5]), "layers.0"),
        (change(kept="fp64"), "kept"),
        (change(teacher={}), "teacher"),
        (change(task="x" * 2000), "task"),
        (change(columns=[]), "columns"),
        (change(columns=5), "columns"),
        (change(columns=[COLUMN, COLUMN]), "columns"),
        (change(columns=[COLUMN | {"stored": "object"}]), "stored"),
        (change(columns=[COLUMN | {"given": "Tensor"}]), "given"),
        (change(columns=[COLUMN | {"shape": [-3]}]), "shape"),
        (change(columns=[COLUMN | {"shape": [2**40] * 8}]), "larger than the file"),
        (change(columns=[COLUMN | {"shape": [4]}]), "positions of its rows"),
        (change(columns=[COLUMN | {"stored": "bits"}]), "bits"),
        (change(columns=[COLUMN | {"bits": 3}]), "bits"),
        (change(columns=[COLUMN | {"tokens": 1}]), "tokens"),
        (change(columns=[COLUMN | {"more": 1}]), "more"),
        (change(more=1), "more"),
        (lambda manifest: [1], "object"),
        (lambda manifest: b"[" * 100_000, "JSON|recursion"),
        (lambda manifest: b"{}", "required|missing"),
        (lambda manifest: b"\xff", "JSON|utf"),
    ],
)
def test_a_wrong_field_is_one_message_that_names_it(tmp_path: Path, changed: Any, message: str) -> None:
    path = filled(tmp_path / "answers")
    forge(path, changed)
    with pytest.raises(KdError, match=f"is damaged: .*({message})") as caught:
        read(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "offsets", [[0, 24, 48, 72, 96, 120, 2**62], [0] * 7, [24, 0, 48, 72, 96, 120, 144], [0, 24, 48, 72, 96, 144, 144], [0, 2**64 - 24, 48, 72, 96, 120, 144]]
)
def test_positions_beyond_the_rows_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    path = filled(tmp_path / "answers")
    forge(path, offsets=offsets)
    with pytest.raises(KdError, match="positions of its rows are inconsistent"):
        read(path)


@pytest.mark.parametrize("value", [1e30, np.nan, np.inf, -1e30])
def test_values_that_no_loss_can_use_are_refused(tmp_path: Path, value: float) -> None:
    path = filled(tmp_path / "answers")
    rows = np.zeros((6, 6), "<f4")
    rows[4, 5] = value
    forge(path, rows=rows.tobytes())
    with pytest.raises(KdError, match="is damaged: its logits hold nan, infinity or a number beyond"):
        read(path)


@pytest.mark.slow
def test_a_change_of_any_byte_is_found(tmp_path: Path) -> None:
    path = filled(tmp_path / "answers")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(KdError, match=r"is damaged|is not a teacher cache|has format"):
            read(path)


def test_only_the_blocks_that_are_read_are_verified() -> None:
    rows = np.arange(3 * BLOCK // 8, dtype=np.int64).view(np.uint8)
    writer = BlockWriter()
    writer.update(memoryview(rows))
    changed = rows.copy()
    changed[2 * BLOCK + 5] ^= 1
    reader = BlockReader(changed, writer.finish())
    reader.verify(np.array([0, BLOCK - 4]), np.array([8, BLOCK + 4]))
    assert reader.known.tolist() == [True, True, False]
    with pytest.raises(ValueError, match="block 2"):
        reader.verify(np.array([2 * BLOCK - 8]), np.array([2 * BLOCK + 1]))


PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=4),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(some.data())
@settings(max_examples=200, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_manifest_is_read_or_refused_in_one_error(tmp_path: Path, data: Any) -> None:
    path = filled(tmp_path / "answers")
    before = sorted(tmp_path.iterdir())

    def mutate(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        while True:
            key = data.draw(some.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(some.booleans()):
                break
            place = place[key]
        place[key] = data.draw(PLAIN)

    forge(path, mutate)
    began = time.perf_counter()
    with contextlib.suppress(KdError):
        read(path)
    assert time.perf_counter() - began < 5
    assert sorted(tmp_path.iterdir()) == before


def test_the_fields_of_a_new_cache_are_those_of_the_schema(tmp_path: Path) -> None:
    assert set(Reader(filled(tmp_path / "answers")).manifest) == set(Manifest.model_fields)

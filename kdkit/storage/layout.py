"""The files of a saved folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdkit.errors import KdError, brief
from kdkit.storage.sparse_file import describe_sparse

SCHEMA = 2
"""The version of the format; a change that an older kdkit can't read increases it."""
HEAD, STRUCTURE, WEIGHTS = "kd.json", "structure.json", "weights.safetensors"
STORAGE = "storage"
"""The key of kd.json that describes the encoded tensors."""
RESERVED = ("format", "schema", "class", "skeleton", "environment", "files")
LARGEST = 256 * 2**20
"""Bytes of a JSON file; the structure of a model with 10,000 modules takes some 10 MiB."""
DEEPEST = 128
"""Levels of nested lists and mappings in a JSON file; `json_values` writes up to three for each of its own levels."""
LONGEST_INTEGER = 400
"""Digits of an integer; Python's own limit is 4,300."""
NOT_FINITE = ("nan", "inf", "-inf")
"""The numbers that JSON lacks, as they are tagged."""
AGAIN = "the folder is incomplete or damaged: save the version again"


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write plain data to a file, in JSON that any program reads; nan and infinite numbers are tagged.

    Raises:
        KdError: the data is not plain, or `read_json` would refuse it.
        OSError: the file can't be written.
    """
    hint = "facts are numbers, text, lists and dicts"
    try:
        content = json.dumps(_tagged(data), ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")  # half of a surrogate pair becomes JSON's own escape
        _parse(content)
    except _Refused as error:
        raise KdError(f"{path.name} can't be read again: {error}", hint) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise KdError(f"{path.name} can hold only plain data: {_find_odd(data)}", hint) from error
    path.write_bytes(content)


def read_json(path: Path) -> Any:
    """Read a file that `write_json` wrote.

    Raises:
        KdError: the file is missing, damaged, can't be read, or is larger or nested deeper than `write_json` makes them.
    """
    try:
        check_regular(path)
        if path.stat().st_size > LARGEST:
            raise KdError(f"{path} has {path.stat().st_size:,} bytes; kdkit reads up to {LARGEST:,}", AGAIN)
        return _parse(path.read_bytes())
    except _Refused as error:
        raise KdError(f"{path} is damaged: {error}", AGAIN) from error
    except OSError as error:
        raise KdError(f"can't read {path}: {error.strerror or 'the system gives no reason'}", "check its permissions") from error


class _Refused(Exception):
    """JSON that `write_json` does not write."""


def _parse(content: bytes) -> Any:
    """The data in a file's content.

    Raises:
        _Refused: the content is damaged, or no `write_json` wrote it.
    """
    if len(content) > LARGEST:
        raise _Refused(f"it has {len(content):,} bytes, more than {LARGEST:,}")
    try:
        data = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant, parse_int=_read_integer, object_pairs_hook=_read_mapping)
    except json.JSONDecodeError as error:
        raise _Refused(f"it is not JSON from line {error.lineno} on") from error
    except UnicodeDecodeError as error:
        raise _Refused("it is not text in UTF-8") from error
    except RecursionError as error:
        raise _Refused(f"it is nested deeper than {DEEPEST} levels") from error
    _check_depth(data)
    return data


def _refuse_constant(name: str) -> None:
    raise _Refused(f"{name} is not JSON")


def _read_integer(text: str) -> int:
    if len(text) > LONGEST_INTEGER:
        raise _Refused(f"a number has {len(text):,} digits")
    return int(text)


def _read_mapping(pairs: list[tuple[str, Any]]) -> Any:
    """A mapping, or the number that a tag stands for."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Refused(f"the key {brief(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))} occurs twice")
    tagged = found.keys() == {"$", "text"} and found["$"] == "float" and isinstance(found["text"], str) and found["text"] in NOT_FINITE
    return float(found["text"]) if tagged else found


def _tagged(value: Any) -> Any:
    """Plain data with the numbers that JSON lacks as `{"$": "float", "text": "nan"}`."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$": "float", "text": float.__repr__(value)}
    if isinstance(value, dict):
        return {key: _tagged(item) for key, item in value.items()}
    return [_tagged(item) for item in value] if isinstance(value, list | tuple) else value


def _find_odd(data: Any) -> str:
    """What makes data other than plain, in words."""
    level = [data]
    for _ in range(DEEPEST):
        for each in level:
            if not isinstance(each, dict | list | tuple | str | int | float | None):
                return f"it holds a value of type {type(each).__name__}"
            if isinstance(each, dict) and not all(isinstance(key, str | int | float | None) for key in each):
                return "a key of a dict is not text"
            if isinstance(each, int) and each.bit_length() > 3 * LONGEST_INTEGER:
                return f"it holds {brief(each)}"
        level = [item for each in level if isinstance(each, dict | list | tuple) for item in (each.values() if isinstance(each, dict) else each)]
    return f"it is nested deeper than {DEEPEST} levels"


def check_regular(path: Path) -> None:
    """Raise KdError unless a path is a file in its own folder: no device, no pipe, no link to a place outside, no sparse file."""
    if not path.is_file():
        raise KdError(f"{path} is missing", AGAIN)
    if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise KdError(f"{path} is a link to a place outside of its folder", "copy the file to the folder if you trust it")
    if fault := describe_sparse(path):
        raise KdError(f"{path} {fault}", AGAIN)


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(DEEPEST):
        level = [item for each in level if isinstance(each, dict | list) for item in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return
    raise _Refused(f"it is nested deeper than {DEEPEST} levels")

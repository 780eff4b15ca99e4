"""Read ONNX files from disk, with the data that they keep in other files of their folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdkit.backends.onnx.element_sizes import count_bytes
from kdkit.errors import KdError, brief
from kdkit.parameters.schema import check_inside

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

LARGEST = 2**31 - 1
"""Bytes of an ONNX file: protobuf sizes are signed 32-bit numbers."""


def read_onnx(path: Path) -> bytes:
    """An ONNX file as one serialized graph; tensors that are stored in other files are put into it.

    Raises:
        KdError: the file is missing or not a complete graph, or it refers to data that is not in a file of its own folder, or to more than these hold.
    """
    content = _read_file(path)
    model = parse_onnx(content, str(path))
    stored_elsewhere = list(_external_tensors(model))
    if not stored_elsewhere:
        return content
    _fill(stored_elsewhere, path, len(content))
    return model.SerializeToString()


def _read_file(path: Path) -> bytes:
    if not path.is_file() or not path.resolve().is_relative_to(path.parent.resolve()):
        raise KdError(f"{path} is missing, is no file, or is a link to a place outside of its folder", "the folder is incomplete or damaged: save the version again")
    if path.stat().st_size > LARGEST:
        raise KdError(f"{path} has {path.stat().st_size:,} bytes; an ONNX file has up to {LARGEST:,}", "the folder is incomplete or damaged: save the version again")
    try:
        return path.read_bytes()
    except OSError as error:
        raise KdError(f"can't read {path}: {error.strerror or 'the system gives no reason'}", "check its permissions") from error


def _fill(tensors: Iterable[TensorProto], path: Path, size: int) -> None:
    """Put the numbers of tensors that are stored in other files into the tensors.

    Args:
        size: bytes of the graph without them.

    Raises:
        KdError: together they take more than these files hold, or than one graph can.
    """
    taken: Counter[Path] = Counter()
    for tensor in tensors:
        source, offset, length = _place_of(tensor, path)
        taken[source] += length
        if taken[source] > source.stat().st_size:
            raise KdError(f"{path}: the tensors in {source.name} take more bytes than it has, as several share them", "export the model again")
        if size + taken.total() > LARGEST:
            raise KdError(f"{path}: with the tensors of its other files it takes more than {LARGEST:,} bytes, the most that one graph can", "export a smaller model")
        with source.open("rb") as file:
            file.seek(offset, os.SEEK_SET)
            tensor.raw_data = file.read(length)
        tensor.data_location = type(tensor).DEFAULT
        del tensor.external_data[:]


def check_self_contained(content: bytes, what: str) -> None:
    """Check that a serialized graph needs no other file.

    Raises:
        KdError: it is not a complete graph, or refers to data in a file.
    """
    tensor = next(_external_tensors(parse_onnx(content, what)), None)
    if tensor is not None:
        raise KdError(f"{what}: the tensor {brief(tensor.name)} is stored in another file", "load the file with onnx.load, which reads these files too")


def parse_onnx(content: bytes, what: str) -> ModelProto:
    """A graph from its bytes.

    Raises:
        KdError: it is not a complete graph.
    """
    import onnx

    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own error, and others for hostile bytes
        raise KdError(f"{what}: can't open the graph, which is damaged or incomplete", "save or download it again") from error


def _external_tensors(message: Any) -> Iterator[TensorProto]:
    """The tensors of a graph, its functions and subgraphs, that are stored in other files."""
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        if message.data_location == TensorProto.EXTERNAL or message.external_data:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if hasattr(value, "__len__") else (value,):
                yield from _external_tensors(item)


def _place_of(tensor: TensorProto, path: Path) -> tuple[Path, int, int]:
    """(file, first byte, bytes) of a tensor that is stored in another file."""
    where = f"{path}: the tensor {brief(tensor.name)}"
    facts = {entry.key: entry.value for entry in tensor.external_data}
    try:
        name = check_inside(facts.get("location", ""))
        offset, length = _read_number(facts.get("offset", "0")), count_bytes(tensor.dims, tensor.data_type)
        if _read_number(facts.get("length", str(length))) != length:
            raise ValueError(f"its shape takes {brief(length)} bytes")
    except ValueError as error:
        raise KdError(f"{where} is stored at {brief(facts)}: {error}", "kdkit reads only files in the folder of the graph") from error
    source = path.parent / name
    if not source.is_file() or any(each.is_symlink() for each in (source, *source.parents) if each.is_relative_to(path.parent) and each != path.parent):
        raise KdError(f"{where} is stored in {name}, which is missing or a link", "kdkit reads only files in the folder of the graph")
    size = source.stat().st_size
    if offset + length > size:
        raise KdError(f"{where} is stored in {name} from {brief(offset)} to {brief(offset + length)}, and the file has {size:,} bytes", "save or download it again")
    return source, offset, length


def _read_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError("it should be a number of bytes")
    return int(text)

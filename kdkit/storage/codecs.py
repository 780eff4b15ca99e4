"""Codecs: lossless encodings for the tensors of some layers in a saved folder, such as entropy-coded weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.errors import KdError
from kdkit.guards import explain_error
from kdkit.models.stored_form import Storage
from kdkit.storage.structure import tensors

PART = "#"
"""Separates the name of a tensor and the name of one of its encoded parts."""


@dataclass(frozen=True)
class Codec:
    """A lossless encoding of tensors; a plugin contributes it through the hook `kdkit_codecs`.

    Attributes:
        name: its name in stages and saved folders.
        encode: (tensor, **options) -> (tensors by name, plain data), from which `decode` restores the tensor bit for bit; None leaves
            the tensor as it is. The tensors are plain and on the CPU; a packed weight is encoded part by part.
        decode: (tensors by name, plain data) -> the tensor.

    >>> same = Codec("same", lambda tensor: ({"numbers": tensor}, {}), lambda parts, data: parts["numbers"])
    >>> parts, data = same.encode(torch.ones(2))
    >>> same.decode(parts, data)
    tensor([1., 1.])
    """

    name: str
    encode: Callable[..., tuple[Mapping[str, Tensor], Any] | None]
    decode: Callable[[Mapping[str, Tensor], Any], Tensor]


@dataclass(frozen=True)
class Encoded:
    """The encoded tensors of a model.

    Attributes:
        values: all tensors to write: encoded parts in place of the tensors that were encoded.
        data: name of each encoded tensor -> the plain data that `decode` needs besides the parts.
    """

    values: dict[str, Tensor]
    data: dict[str, Any]


def encode_tensors(model: nn.Module, values: Mapping[str, Tensor], storage: Storage, codec: Codec) -> Encoded:
    """Encode a model's tensors in the layers of `storage`, and check that each can be decoded bit for bit.

    Args:
        values: tensors on the CPU, by the names of `structure.tensors`.

    Raises:
        KdError: the codec fails, is not lossless or returns something other than plain data, or it encodes no tensor of these layers.
    """
    found, data = dict(values), {}
    for name in storage.selects(model, list(values)):
        try:
            code = codec.encode(values[name].clone(), **storage.options)  # a codec may work in place
            if code is None:
                continue
            parts, facts = {str(key): part.detach().contiguous() for key, part in code[0].items()}, json.loads(json.dumps(code[1]))
            exact = _same_bits(codec.decode({key: part.clone() for key, part in parts.items()}, facts), values[name])
        except Exception as error:  # a plugin's codec may raise anything
            raise KdError(
                f"the codec {codec.name!r} can't encode {name}: {explain_error(error, codec.encode.__module__)}", "select other layers, or another codec"
            ) from error
        if not exact:
            raise KdError(f"the codec {codec.name!r} does not restore {name} bit for bit", "its author must correct it; nothing was written")
        del found[name]
        found |= {f"{name}{PART}{key}": part for key, part in parts.items()}
        data[name] = facts
    if not data:
        raise KdError(f"the codec {codec.name!r} encodes no tensor of {', '.join(storage.layers)}", "select other layers, or another codec")
    return Encoded(found, data)


def decode_tensors(values: Mapping[str, Tensor], data: Mapping[str, Any], codec: Codec) -> dict[str, Tensor]:
    """Restore the tensors that `encode_tensors` encoded.

    Raises:
        KdError: the codec can't decode a tensor.
    """
    found = dict(values)
    for name, facts in data.items():
        prefix = f"{name}{PART}"  # the name itself may hold the mark, as may the names of its parts
        parts = {key.removeprefix(prefix): found.pop(key) for key in list(found) if key.startswith(prefix)}
        try:
            found[name] = codec.decode(parts, facts)
        except Exception as error:  # for example, another release of the plugin wrote the folder
            raise KdError(
                f"the codec {codec.name!r} can't decode {name}: {explain_error(error, codec.decode.__module__)}", "install the release of its plugin that saved it"
            ) from error
    return found


def bytes_saved(model: nn.Module, storage: Storage, codec: Codec) -> int:
    """How many bytes a stored form saves; the plain data besides the encoded parts is counted.

    Raises:
        KdError: as `encode_tensors` does.
    """
    values = {name: tensor.detach().cpu() for name, tensor in tensors(model).items()}
    encoded = encode_tensors(model, values, storage, codec)
    before = sum(values[name].nbytes for name in encoded.data)
    after = sum(tensor.nbytes for name, tensor in encoded.values.items() if name not in values)
    return before - after - len(json.dumps(encoded.data).encode())


def _same_bits(one: Any, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))

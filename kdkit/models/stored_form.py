"""The stored form of a version: which codec encodes the weights of which layers when it is saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from kdkit.errors import KdError
from kdkit.models.layer_selection import select_layers


@dataclass(frozen=True)
class Storage:
    """How a version is stored.

    Attributes:
        codec: the name of the codec, which a plugin contributes through `kdkit_codecs`.
        layers: patterns of the layers whose tensors are encoded; default: all layers.
        options: passed to the codec's `encode`; plain data.

    Raises:
        KdError: the codec is not a name, or the options are not plain data.

    >>> Storage("huffman", layers=("encoder",), options={"block": 64}).as_data()
    {'codec': 'huffman', 'layers': ['encoder'], 'options': {'block': 64}}
    """

    codec: str
    layers: tuple[str, ...] = ("*",)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.codec, str):
            raise KdError(f"the codec of a storage is named by a string, not by a {type(self.codec).__name__}", 'write Storage("huffman")')
        object.__setattr__(self, "layers", (self.layers,) if isinstance(self.layers, str) else tuple(self.layers))
        try:
            json.dumps(dict(self.options))
        except (TypeError, ValueError) as error:
            raise KdError(f"the options of the storage {self.codec!r} are not plain data: {error}", "give numbers, strings, lists and dicts") from error

    def as_data(self) -> dict[str, Any]:
        """The storage as plain data."""
        return asdict(self) | {"layers": list(self.layers), "options": dict(self.options)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Storage:
        """The storage that `as_data` returned."""
        return cls(str(data["codec"]), tuple(data["layers"]), dict(data["options"]))

    def selects(self, model: nn.Module, names: Iterable[str]) -> list[str]:
        """Those names of the model's tensors that are in the encoded layers.

        Raises:
            KdError: a pattern matches no layer.

        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> Storage("huffman", layers=("1",)).selects(net, ["0.weight", "1.weight", "1.weight:scale"])
        ['1.weight', '1.weight:scale']
        """
        layers = set(select_layers(model, self.layers))
        return [name for name in names if layers & _possible_holders(name)]


def _possible_holders(name: str) -> set[str]:
    """The module that holds a tensor: `fc` for `fc.weight`, for `fc.weight:scale`, and for an attribute, `fc:table`."""
    place = name.partition(":")[0]
    return {place.rpartition(".")[0], place} if ":" in name else {place.rpartition(".")[0]}

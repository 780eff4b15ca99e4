"""kdkit's prune family: remove parts of a model that it does not need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kdkit import Stage, hookimpl

if TYPE_CHECKING:
    from kdkit.storage import Codec

kdkit_classes = {"Mask": ["kdkit_prune.masks:Mask"]}
"""The classes that can be in a saved folder: name -> where it is."""


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The techniques of the family."""
    from kdkit_prune.channels import Channels
    from kdkit_prune.fold import Fold
    from kdkit_prune.gradual import Gradual
    from kdkit_prune.iterative import Iterative
    from kdkit_prune.layers import Layers
    from kdkit_prune.neurons import Neurons
    from kdkit_prune.weights import Weights

    return [Channels, Layers, Neurons, Weights, Gradual, Iterative, Fold]


@hookimpl
def kdkit_codecs() -> Iterable[Codec]:
    """How the weights of a pruned version are stored."""
    from kdkit.storage import Codec
    from kdkit_prune.sparse_codec import decode, encode

    return [Codec("sparse", encode, decode)]

"""Decomposition: a layer as a product of smaller ones."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit import Stage, hookimpl

kdkit_classes = {
    "LinearConvolution": ["kdkit_decompose.linear:LinearConvolution"],
    "ToChannels": ["kdkit_decompose.linear:ToChannels"],
    "ToPositions": ["kdkit_decompose.linear:ToPositions"],
    "WinogradConvolution": ["kdkit_decompose.winograd:WinogradConvolution"],
}


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The family's techniques."""
    from kdkit_decompose.cp import Cp
    from kdkit_decompose.linear import AsLinear
    from kdkit_decompose.separable import Separable
    from kdkit_decompose.spatial import Spatial
    from kdkit_decompose.svd import Svd
    from kdkit_decompose.tucker import Tucker
    from kdkit_decompose.winograd import Winograd

    return [Svd, Spatial, Tucker, Cp, Separable, AsLinear, Winograd]

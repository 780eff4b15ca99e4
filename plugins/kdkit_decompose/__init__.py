"""Decomposition: a layer as a product of smaller ones."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit import Stage, hookimpl


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The family's techniques."""
    from kdkit_decompose.cp import Cp
    from kdkit_decompose.separable import Separable
    from kdkit_decompose.spatial import Spatial
    from kdkit_decompose.svd import Svd
    from kdkit_decompose.tucker import Tucker

    return [Svd, Spatial, Tucker, Cp, Separable]

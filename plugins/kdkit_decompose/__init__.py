"""Decomposition: a layer as a product of smaller ones."""

from __future__ import annotations

from kdkit import hookimpl


@hookimpl
def kdkit_stages():
    from kdkit_decompose.svd import Svd

    return [Svd]

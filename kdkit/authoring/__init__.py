"""Authoring: from a stage in a cell to a package that can be published."""

from kdkit.authoring.package import Package, write
from kdkit.authoring.source import Source, source_of

__all__ = ["Package", "Source", "source_of", "write"]

"""The version of kdkit."""

__version__ = "0.2.0"

"""Backends: where a version runs and is measured."""

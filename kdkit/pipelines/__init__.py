"""Pipelines: stages in order."""

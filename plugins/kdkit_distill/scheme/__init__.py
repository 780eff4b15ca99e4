"""Schemes: which models teach, in which order, and on which data."""

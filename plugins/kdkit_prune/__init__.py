"""kdkit's prune family."""

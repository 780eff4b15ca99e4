"""kdkit's decompose family."""

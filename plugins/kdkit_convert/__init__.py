"""kdkit's convert family."""

"""kdkit's distill family."""

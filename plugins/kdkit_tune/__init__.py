"""kdkit's tune family."""

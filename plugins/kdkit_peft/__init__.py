"""kdkit's peft family."""

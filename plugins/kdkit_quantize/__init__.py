"""kdkit's quantize family."""

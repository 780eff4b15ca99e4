"""Who teaches whom, when, and on what."""

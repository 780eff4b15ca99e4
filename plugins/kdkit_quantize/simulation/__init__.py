"""Simulated quantization: float models that compute what their 8-bit form will, so that training can adapt to it."""

"""Transformer distillation: objectives over hidden states, attention, and relations of queries, keys and values."""

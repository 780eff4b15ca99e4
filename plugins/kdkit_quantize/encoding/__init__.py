"""encode: weights that share few values, and files without redundancy."""

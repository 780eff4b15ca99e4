"""The notebook face: magics, completion, tables."""

"""The teacher cache: a teacher's signal for each item, computed once and stored in one memory-mapped file.

`source` runs the teacher and fills the cache, `items` identifies items, `columns` encodes a signal as bytes, `manifest` describes them,
`checksums` verifies them, `file` reads and writes.
"""

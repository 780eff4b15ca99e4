"""The teacher cache: what a teacher says of each item, asked once and kept in one memory-mapped file.

`source` asks and remembers, `items` tells which item is which, `columns` how a signal lies in bytes, `file` where they stand.
"""

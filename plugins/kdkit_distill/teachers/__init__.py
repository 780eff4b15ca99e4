"""Sources of a teacher's signals."""

"""Matching the layers of student and teacher."""

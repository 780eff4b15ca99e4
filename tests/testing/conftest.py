"""Stages that are wrong on purpose are no tests, nor are the examples in their docstrings."""

collect_ignore = ["defects.py", "heavy.py"]

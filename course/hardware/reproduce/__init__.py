"""Published figures, recomputed: see `row.py` for what a row is, and one module for each subject."""

from importlib import import_module

from course.hardware.reproduce.row import Row

SUBJECTS = ("counts", "costs", "pipelines", "products")


def rows() -> list[Row]:
    """All rows, in order, not yet computed."""
    return [row for subject in SUBJECTS for row in import_module(f"course.hardware.reproduce.{subject}").ROWS]

"""Published figures, recomputed: see `row.py` for what a row is, and one module for each subject."""

from importlib import import_module

from course.hardware.reproduce.row import Row

SUBJECTS = ("counts", "costs", "pipelines", "networks", "products", "services")


def rows() -> list[Row]:
    """All rows, in order, not yet computed."""
    return [row for subject in SUBJECTS for row in import_module(f"course.hardware.reproduce.{subject}").ROWS]

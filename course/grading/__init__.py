"""Grading: answers out of notebooks, each run in a sandbox of its own, compared here, written down for the instructor."""


class GradingError(Exception):
    """One sentence: what was wrong, and what to do."""

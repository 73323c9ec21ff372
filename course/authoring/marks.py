"""The marks that a source, the notebooks built from it and a learner's copy have in common."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
BLANK = "# YOUR CODE HERE", "raise NotImplementedError"
COMPARED = "nbval-check-output"  # nbval compares the stored output of cells with this tag
BLOCK = re.compile(rf"^([ \t]*){BEGIN}[ \t]*\n(.*?)^[ \t]*{END}[ \t]*$", re.MULTILINE | re.DOTALL)
EMPTY = re.compile(rf"^[ \t]*{BLANK[0]}\s*\n\s*{BLANK[1]}\b", re.MULTILINE)
ROLE = re.compile(r"(exercise|check):(\d\d\.\d+)")
MARKER = re.compile(r"^#[ \t]*exercise[ \t]+(\d\d\.\d+)\b", re.MULTILINE | re.IGNORECASE)
CHECK = re.compile(r"""^[ \t]*check\(\s*["'](\d\d\.\d+)["']\s*,\s*(\w+)\s*,?\s*\)(?:[ \t]*;)?\s*$""", re.MULTILINE)
CARD = re.compile(
    r"^\*\*Exercise (?P<id>\d\d\.\d+)\*\* · difficulty (?P<difficulty>[1-5]) of 5 · (?P<minutes>\d+) minutes?"
    r" · (?P<points>\d+) points?(?P<spine> · spine)?$",
    re.MULTILINE,
)


def blank(text: str) -> str:
    """A solution's cell as the lab has it: each marked block is two lines, at the block's indentation."""
    return BLOCK.sub(rf"\1{BLANK[0]}\n\1{BLANK[1]}", text)


def solution_lines(text: str) -> list[str]:
    """The stripped lines inside the marked blocks of a cell."""
    return [line.strip() for block in BLOCK.finditer(text) for line in block[2].splitlines()]


def roles(tags: list[str]) -> Iterator[tuple[str, str]]:
    """What tags say about a cell: ("exercise", "04.1") for an answer cell, ("check", "04.1") for its check."""
    return (match.groups() for match in map(ROLE.fullmatch, tags) if match)


def cell_id(role: str, exercise: str) -> str:
    return f"ex-{exercise.replace('.', '-')}-{'answer' if role == 'exercise' else 'check'}"


def role_of(cell: dict[str, Any]) -> tuple[str, str] | None:
    """The role of a notebook's cell by its tags, else by its id."""
    if named := next(roles(cell["metadata"].get("tags", [])), None):
        return named
    match = re.fullmatch(r"ex-(\d\d)-(\d+)-(answer|check)", cell.get("id", ""))
    return ("exercise" if match[3] == "answer" else "check", f"{match[1]}.{match[2]}") if match else None


def about(notebook: dict[str, Any]) -> dict[str, Any]:
    """What a build wrote about a notebook: unit, kind, the source's hash, the fingerprints of its cells."""
    course = notebook["metadata"].get("course")
    return course if isinstance(course, dict) else {}


def fingerprint(cell: dict[str, Any]) -> str:
    """A short hash of a cell's kind and text, by which a cell is known when its id was lost."""
    return hashlib.sha256(f"{cell['cell_type']}\n{cell['source'].strip()}".encode("utf-8", "replace")).hexdigest()[:8]

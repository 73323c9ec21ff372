"""`course grade`: what it prints, and its exit code."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from course.grading import GradingError
from course.grading.grade import Lab, find_lab, grade, isolation_level
from course.grading.gradebook import Grade, plain
from course.grading.sandbox import level
from course.grading.submission import submissions

MARKS = {"passed": "[green]✓[/]", "failed": "[dark_orange]✗[/]", "not done": "[dim]○[/]"}


def grade_command(lab: str, out: Path, files: list[Path], isolation: bool = True) -> int:
    """Grade notebooks of one lab into `out`.

    isolation: False runs answers as plain processes with the rights of whoever calls this.
    Returns: 0 when all were graded, 1 when one could not be read or graded, 2 for wrong use.
    """
    console = Console(file=sys.stdout, highlight=False)
    try:
        chosen = find_lab(lab)
        found = submissions(files, chosen.slug)
        letter = isolation_level(isolation)
        _make(out)
        sentence = level()[1] if letter == "A" else "Answers run as plain processes with your rights."
        console.print(f"Sandbox level {letter}. {sentence}")
        grades = grade(chosen, out, found, isolation)
    except GradingError as error:
        print(plain(str(error)), file=sys.stderr)
        return 2
    console.print(_table(chosen, grades))
    complete = sum(each.complete for each in grades)
    console.print(Text(f"{complete} of {len(grades)} graded: {out / 'gradebook.csv'}"), soft_wrap=True)
    return 0 if complete == len(grades) else 1


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GradingError(f"Nothing can be written to {str(out)!r}: {error.strerror}.") from None


def _table(lab: Lab, grades: Sequence[Grade]) -> Table:
    table = Table("student", box=None, pad_edge=False)
    for exercise in lab.exercises:
        table.add_column(exercise.id, justify="center")
    table.add_column(f"of {lab.points}", justify="right")
    table.add_column("note", overflow="fold")
    for each in grades:
        marks = [MARKS[each.verdicts[e.id].status] if e.id in each.verdicts else "[red]?[/]" for e in lab.exercises]
        table.add_row(Text(each.student), *marks, str(each.total), Text(plain(" ".join(each.notes))))
    return table

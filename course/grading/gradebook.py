"""What grading writes: one gradebook for the class, one results.json a student, in Gradescope's form."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course.authoring.files import write
from course.checking.exercise import Exercise
from course.checking.judge import Verdict
from course.checking.result import text

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell starts that a spreadsheet would run
LONGEST = 4000  # characters of one exercise's output


@dataclass(frozen=True)
class Grade:
    """One student's verdicts by exercise id. `complete`: everything could be read and graded."""

    student: str
    verdicts: dict[str, Verdict]
    notes: tuple[str, ...] = ()
    complete: bool = True

    @property
    def total(self) -> int:
        return sum(verdict.earned for verdict in self.verdicts.values())


def write_gradebook(path: Path, grades: Sequence[Grade], exercises: Sequence[Exercise]) -> None:
    rows = io.StringIO()
    out = csv.writer(rows, lineterminator="\n")
    out.writerow(["student", "total", *(exercise.id for exercise in exercises), "note"])
    for grade in grades:
        points = [grade.verdicts[e.id].earned if e.id in grade.verdicts else 0 for e in exercises]
        out.writerow([_cell(grade.student), grade.total, *points, _cell(" ".join(grade.notes))])
    write(path, rows.getvalue())


def write_results(path: Path, grade: Grade, exercises: Sequence[Exercise], isolation: str) -> None:
    """isolation: the letter of the sandbox level that the answers ran under."""
    results = {
        "score": grade.total,
        "output": plain(" ".join(grade.notes)),
        "tests": [_test(exercise, grade.verdicts.get(exercise.id)) for exercise in exercises],
        "extra_data": {"isolation": isolation, "complete": grade.complete},
    }
    write(path, json.dumps(results, indent=1))


def _test(exercise: Exercise, verdict: Verdict | None) -> dict[str, Any]:
    return {
        "name": f"{exercise.id} {exercise.title}",
        "score": verdict.earned if verdict else 0,
        "max_score": exercise.points,
        "status": "passed" if verdict and verdict.passed else "failed",
        "output": plain(text(verdict)) if verdict else "Not graded.",
        "output_format": "text",
        "extra_data": {
            "exercise": exercise.id,
            "verdict": verdict.status if verdict else "not graded",
            "misconception": verdict.misconception if verdict else None,
        },
    }


def plain(words: str) -> str:
    """Text that a student may have had a hand in, without control characters or halves of surrogate pairs."""
    words = words[:LONGEST].encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in words)


def _cell(words: str) -> str:
    return "'" * words.startswith(FORMULA) + plain(words).replace("\n", " ")

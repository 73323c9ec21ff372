"""`course check`: the learner's answers laid over the solution notebook, run by nbval, and told as a table."""

import time
from dataclasses import dataclass
from itertools import takewhile

from rich.console import Console
from rich.table import Table
from rich.text import Text

from course.authoring import marks, places
from course.authoring.answers import Notebook, NotebookError, find_answers, overlay, read_notebook
from course.checking.answer import AnswerError, look_at
from course.checking.exercise import Exercise
from course.checking.judge import Verdict
from course.exercises import every
from course.exercises.nbval_lab import CheckError, run_lab


@dataclass(frozen=True)
class Row:
    exercise: Exercise
    status: str  # "passed", "failed" or "not done"
    what: str = ""


def check_command(name: str) -> int:
    """Check the learner's lab of a unit and print the table.

    Returns: 0 when every exercise passed, else 1.
    Raises: UnknownUnit, NotebookError or CheckError, each with one sentence.
    """
    unit = places.unit(name)
    path = unit.notebook("lab", places.workspace())
    if not path.is_file():
        raise CheckError(
            f"There is no lab {unit.number} in {places.workspace()}: get it with `course lab {unit.number}`."
        )
    solution, lab = _own(unit, "solution"), _own(unit, "lab")
    exercises = _exercises(solution)
    answers, faults, notes = find_answers(read_notebook(path), [exercise.id for exercise in exercises])
    console = Console(highlight=False)
    saved = time.strftime("%H:%M", time.localtime(path.stat().st_mtime))
    console.print(Text(f"{path}, saved at {saved}"), soft_wrap=True)
    for note in notes:
        console.print(Text(note), style="yellow")
    rows = rows_of(exercises, solution, lab, answers, faults)
    console.print(table(rows))
    passed = [row for row in rows if row.status == "passed"]
    earned, of = (sum(row.exercise.points for row in some) for some in (passed, rows))
    console.print(f"{len(passed)} of {len(rows)} exercises passed, {earned} of {of} points.")
    if failed := [row.exercise.id for row in rows if row.status == "failed"]:
        console.print(f"More: the check in the notebook, or course hint {failed[0]}")
    return 0 if len(passed) == len(rows) else 1


def rows_of(
    exercises: list[Exercise], solution: Notebook, lab: Notebook, answers: dict[str, str], faults: dict[str, str]
) -> list[Row]:
    """The table's rows. An answer whose cell ends the kernel, or never ends, costs itself only: the rest runs again."""
    answers, faults, verdicts = dict(answers), dict(faults), {}
    for (
        exercise
    ) in exercises:  # what cannot be run is said from its text: a check in the notebook would only miss a name
        try:
            look_at(exercise, answers.get(exercise.id, f"def {exercise.entry}(): ..."))
        except AnswerError as error:
            faults[exercise.id] = str(error)
            del answers[exercise.id]
    cells: dict[tuple[str, str], dict] = {}
    while any(not marks.EMPTY.search(answer) for answer in answers.values()):
        lines, told = run_lab(overlay(solution, lab, answers), places.workspace())
        culprit, sentence = _culprit(lines, answers)
        for line in takewhile(lambda line: not line["ended"], lines):
            if line["role"] == "check" and ("check", line["id"]) not in cells and line["id"] in told:
                verdicts[line["id"]] = told[line["id"]]
            cells.setdefault((line["role"], line["id"]), line)
        if culprit is None:
            break
        if ("check", culprit) not in cells:
            faults[culprit] = sentence
        del answers[culprit]
    return [_row(exercise, cells, verdicts.get(exercise.id), faults.get(exercise.id)) for exercise in exercises]


def _culprit(lines: list[dict], answers: dict[str, str]) -> tuple[str | None, str]:
    """The answer that stopped the run, and how: the cell that ended, or the answer before a cell that ended."""
    before = None
    for line in lines:
        if line["role"] == "exercise" and line["id"] in answers:
            before = line["id"]
        if line["ended"] and before:
            how = "ended the Python process" if line["ended"] == "died" else "did not end in time"
            cell = "The answer cell" if line["role"] == "exercise" else "A cell after the answer"
            return before, f"{cell} {how}."
    return None, ""


def _row(exercise: Exercise, cells: dict, verdict: Verdict | None, fault: str | None) -> Row:
    """nbval decides and the verdict explains. Where they disagree, the stricter counts."""
    if fault:
        return Row(exercise, "failed", fault)
    checked = cells.get(("check", exercise.id))
    if checked is None or (verdict and verdict.status == "not done"):
        return Row(exercise, "not done", (verdict and verdict.reason) or "")
    if verdict and verdict.status == "failed":
        return Row(exercise, "failed", _explained(verdict))
    answered = cells.get(("exercise", exercise.id))
    if answered and not answered["passed"]:
        return Row(exercise, "failed", f"The answer cell could not be run. {answered['error']}")
    if verdict and checked["passed"]:
        return Row(exercise, "passed")
    return Row(exercise, "failed", f"Its check did not run as it should. {checked['error']}".strip())


def _explained(verdict: Verdict) -> str:
    case = next(iter(verdict.failures), None)
    what = case and f"Case {case.number + 1}{f' ({case.sizes})' if case.sizes else ''}: {case.what}"
    return " ".join(part if part[-1] in ".?!" else f"{part}." for part in (verdict.reason, what, verdict.says) if part)


def table(rows: list[Row]) -> Table:
    shown = Table("exercise", box=None, pad_edge=False, padding=(0, 3, 1, 0))
    shown.add_column("points", justify="right")
    shown.add_column("what failed", overflow="fold")
    colours = {"passed": "green", "failed": "dark_orange", "not done": "dim"}
    for row in rows:
        earned = row.exercise.points if row.status == "passed" else 0
        words = {"passed": "passed", "not done": f"not done yet. {row.what}".rstrip(". ")}.get(row.status, row.what)
        shown.add_row(
            Text(f"{row.exercise.id} {row.exercise.title}"),
            f"{earned} of {row.exercise.points}",
            Text(words, style=colours[row.status] if row.status != "failed" else ""),
        )
    return shown


def _own(unit: places.Unit, kind: str) -> Notebook:
    """One of the course's own notebooks."""
    try:
        return read_notebook(unit.notebook(kind, places.root()))
    except NotebookError as error:
        raise CheckError(
            f"The {kind} of unit {unit.number} is not built ({error}): run `course build {unit.number}`."
        ) from None


def _exercises(solution: Notebook) -> list[Exercise]:
    roles = filter(None, map(marks.role_of, solution["cells"]))
    return [every()[name] for role, name in roles if role == "check"]

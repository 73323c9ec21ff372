"""Grading a lab: for each submission and exercise a fresh worker, secret inputs, and a verdict reached here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from course.authoring import places
from course.authoring.answers import NotebookError, read_notebook
from course.authoring.marks import role_of
from course.checking.exercise import Exercise
from course.checking.judge import Verdict, judge
from course.exercises import every
from course.grading import GradingError
from course.grading.gradebook import Grade, write_gradebook, write_results
from course.grading.sandbox import level
from course.grading.submission import Answers, Submission, answers
from course.grading.workers import Workers


@dataclass(frozen=True)
class Lab:
    slug: str
    exercises: tuple[Exercise, ...]

    @property
    def points(self) -> int:
        return sum(exercise.points for exercise in self.exercises)


def find_lab(name: str) -> Lab:
    """The lab of a unit, with the exercises whose answer cells its built solution holds, in order.

    Raises: GradingError when there is no such lab, or it was not built.
    """
    try:
        unit = places.unit(name)
        cells = read_notebook(unit.notebook("solution", places.root()))["cells"]
    except places.UnknownUnit as error:
        raise GradingError(str(error)) from None
    except NotebookError as error:
        raise GradingError(f"The solution of lab {name} cannot be read: {error} Run: course build {name}") from None
    roles = [role for role in map(role_of, cells) if role]
    ids = [exercise for role, exercise in roles if role == "exercise"]
    if not ids or (unknown := [each for each in ids if each not in every()]):
        what = f"no specification of exercise {unknown[0]}" if ids else "no exercise"
        raise GradingError(f"Lab {name} cannot be graded: there is {what}.")
    return Lab(unit.slug, tuple(every()[each] for each in dict.fromkeys(ids)))


def isolation_level(isolation: bool) -> str:
    """The letter that is written into each result. Raises: GradingError where isolation is asked for and not to be had."""
    if not isolation:
        return "C"
    letter, sentence, fix = level()
    if letter != "A":
        raise GradingError(f"{sentence} {fix} With --no-isolation answers run nevertheless, with your rights.")
    return letter


def grade(lab: Lab, out: Path, found: Sequence[Submission], isolation: bool = True) -> list[Grade]:
    """Grade submissions in order: a results.json for each as soon as it is done, and the gradebook at the end."""
    letter, grades = isolation_level(isolation), []
    with Workers(isolation) as workers:
        for submission in tqdm(found, desc="Grading", unit="submission", disable=None):
            grades.append(grade_one(submission, lab.exercises, workers))
            write_results(out / submission.student / "results.json", grades[-1], lab.exercises, letter)
    write_gradebook(out / "gradebook.csv", grades, lab.exercises)
    return grades


def grade_one(submission: Submission, exercises: Sequence[Exercise], workers: Workers) -> Grade:
    """The grade of one submission, whatever it holds: what cannot be graded earns nothing, and a note says why."""
    try:
        taken = answers(submission, [exercise.id for exercise in exercises])
    except NotebookError as error:
        return Grade(submission.student, {}, (*submission.notes, str(error)), complete=False)
    except Exception as error:
        note = f"The notebook could not be read ({type(error).__name__})."
        return Grade(submission.student, {}, (*submission.notes, note), complete=False)
    verdicts, notes = {}, [*submission.notes, *taken.notes]
    for exercise in exercises:
        try:
            verdicts[exercise.id] = _verdict(exercise, taken, workers)
        except Exception as error:
            said = str(error) if isinstance(error, GradingError) else f"The grader failed ({type(error).__name__})."
            notes.append(f"{exercise.id} could not be graded: {said}")
    return Grade(submission.student, verdicts, tuple(notes), complete=len(verdicts) == len(exercises))


def _verdict(exercise: Exercise, taken: Answers, workers: Workers) -> Verdict:
    if fault := taken.faults.get(exercise.id):
        return Verdict(exercise.id, exercise.title, exercise.points, "failed", reason=fault)
    return judge(
        exercise,
        taken.sources.get(exercise.id),
        every(),
        secret=True,
        start=lambda: workers.start(exercise),
        compile=workers.compile(exercise),
        seconds=workers.limits.case,
    )

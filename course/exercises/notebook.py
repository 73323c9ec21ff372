"""What a notebook calls: `check` on an answer, `mine` for an answer that passed before."""

import json
import linecache
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from course.authoring import places, progress
from course.checking.answer import AnswerError, cell_of, prelude, source_of
from course.checking.exercise import Exercise
from course.checking.judge import Verdict, judge
from course.checking.result import Result
from course.exercises import every, find


def check(name: str, answer: Callable) -> Result:
    """Run the public cases of an exercise on the cell that defines `answer`, away from this process.

    A pass in a learner's copy of a lab is recorded, and the answer kept for `mine`.
    """
    exercise = find(name)
    source = None
    try:
        source = cell_of(answer)
        verdict = judge(exercise, source, every())
    except AnswerError as error:
        verdict = Verdict(exercise.id, exercise.title, exercise.points, "failed", reason=str(error))
    if (home := places.home()) and source and verdict.status != "not done":
        progress.record(home, exercise.id, verdict.passed, source)
    if told := os.environ.get("COURSE_VERDICTS"):
        with Path(told).open("a") as lines:
            lines.write(json.dumps(asdict(verdict)) + "\n")
    return Result(verdict)


def mine(name: str) -> Callable:
    """The learner's own function for an exercise, as it last passed; the course's until then. Prints which of the two.

    Where an exercise asks for a kernel, the course's function launches one too.
    """
    exercise = find(name)
    home = places.home()
    kept = progress.kept_answer(home, name) if home else None
    whose = "the course's" if kept is None else "your own"
    print(f"{exercise.id} {exercise.title}: {whose}")
    if kept is not None:
        return _function(exercise, kept)
    return (
        exercise.alternatives[0] if exercise.kernel else exercise.reference
    )  # of a kernel the reference launches none


def _function(exercise: Exercise, source: str) -> Callable:
    """A kept answer as a function, in a namespace that holds what it held when it was checked."""
    earlier = "".join(source_of(find(name).reference, find(name).entry) + "\n" for name in exercise.uses)
    text = f"{prelude(exercise)}from course import mine\n{earlier}{source}"
    module = ModuleType(f"answer_{exercise.id.replace('.', '_')}")
    place = f"<your answer to {exercise.id}>"
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)  # for tracebacks and for Triton
    exec(compile(text, place, "exec"), vars(module))
    return getattr(module, exercise.entry)

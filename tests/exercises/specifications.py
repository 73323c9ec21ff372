"""Every exercise that is tested here: those of the course and the pilots; and what the gates share."""

import hashlib
import inspect
import os
import secrets
import textwrap
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from course import exercises
from course.authoring.places import PACKAGE, Unit
from course.authoring.source import notebook, read_source
from course.checking import judge as judging
from course.checking.answer import source_of
from course.checking.exercise import Exercise, Inputs, Tree
from course.checking.judge import MORE, PUBLIC_SEED, Verdict, draw, judge, run_reference
from course.checking.wire import pack

from warm import compiled, values_of  # isort: skip

PILOTS = Path(__file__).parents[1] / "pilot"


def _every() -> dict[str, Exercise]:
    with mock.patch.dict(os.environ, {"COURSE_EXERCISES": str(PILOTS)}):
        exercises.every.cache_clear()
        try:
            return exercises.every()
        finally:
            exercises.every.cache_clear()


EVERY = _every()


def cells_of(unit: Unit, kind: str) -> list[dict]:
    """The cells of the unit's solution or lab, as a build makes them from the source."""
    return notebook(read_source(unit.source("solution", PACKAGE.parent), "solution"), kind).cells


def seeds(exercise: Exercise) -> int:
    """How many secret seeds the gate in `make test` draws: fewer where kernels are interpreted."""
    return 3 if exercise.kernel else 5


def right_answers(exercise: Exercise) -> list[Callable]:
    """The reference and the alternatives; for a kernel exercise the reference is PyTorch, and no answer."""
    return [*([] if exercise.kernel else [exercise.reference]), *exercise.alternatives]


def source(exercise: Exercise, function: Callable) -> str:
    return source_of(function, exercise.entry)


def blank(exercise: Exercise) -> str:
    """The answer cell as a lab has it."""
    names = ", ".join(inspect.signature(exercise.reference).parameters)
    return f"def {exercise.entry}({names}):\n    # YOUR CODE HERE\n    raise NotImplementedError\n"


def judged(exercise: Exercise, answer: str, seed: int | None = None, **more) -> Verdict:
    """The verdict on public cases, or with a seed on the cases that a grader with this seed would draw."""
    more = {"compile": compiled} | more
    with mock.patch.object(judging, "values_of", values_of):
        if seed is None:
            return judge(exercise, answer, EVERY, **more)
        with _seeded(seed):
            return judge(exercise, answer, EVERY, secret=True, **more)


@contextmanager
def _seeded(seed: int):
    with mock.patch.object(secrets, "randbits", return_value=seed):
        yield


def cases(exercise: Exercise, seed: int | None = None) -> list[Inputs]:
    count = exercise.cases * (1 if seed is None else MORE)
    return [draw(exercise, PUBLIC_SEED if seed is None else seed, number) for number in range(count)]


def values(exercise: Exercise, function: Callable, drawn: Iterable[Inputs]) -> list[Tree]:
    return list(values_of(exercise, function, drawn, EVERY))


def fails(exercise: Exercise, function: Callable, seed: int) -> bool:
    """Whether one of our own functions gives a wrong value, or none, on a case that a grader with this seed would draw."""
    drawn = cases(exercise, seed)
    came = judging.values_of(exercise, function, drawn, EVERY)
    try:
        for inputs, value in zip(drawn, came, strict=True):
            if exercise.compare(inputs, run_reference(exercise.reference, inputs), value) is not None:
                return True
    except RuntimeError:  # it raised: the judge says so too
        return True
    return False


def told_apart(exercise: Exercise, drawn: list[Inputs], wanted: list[Tree], got: list[Tree]) -> bool:
    """Whether some case shows that one list of values is not the other."""
    triples = zip(drawn, wanted, got, strict=True)
    return any(exercise.compare(inputs, w, g) is not None for inputs, w, g in triples)


def digest(inputs: Inputs) -> str:
    return hashlib.sha256(pack(inputs)).hexdigest()


def lines_of(function: Callable) -> list[str]:
    """The lines of a function's body, stripped."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()[1:]
    return [line.strip() for line in lines if line.strip()]

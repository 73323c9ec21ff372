"""The exercises: one folder a unit, one file an exercise, each file a specification named EXERCISE."""

import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path

from course.checking.exercise import Exercise

HERE = Path(__file__).parent


class UnknownExercise(Exception):
    """There is no exercise of that name: one sentence."""


@lru_cache
def every() -> dict[str, Exercise]:
    """All specifications by id: the course's own, and those in the folder that COURSE_EXERCISES names."""
    folders = [HERE, *map(Path, filter(None, [os.environ.get("COURSE_EXERCISES")]))]
    found = [_load(path).EXERCISE for folder in folders for path in sorted(folder.glob("u[0-9][0-9]/[a-z]*.py"))]
    return {exercise.id: exercise for exercise in sorted(found, key=lambda its: _place(its.id))}


def find(name: str) -> Exercise:
    """The exercise of an id. Raises: UnknownExercise with the ids that are near."""
    exercises = every()
    if name in exercises:
        return exercises[name]
    near = [known for known in exercises if known.split(".")[0] == str(name).split(".")[0]]
    known = ", ".join(near or exercises)
    raise UnknownExercise(f"There is no exercise {name}; there is {known}.")


def of_unit(number: str) -> list[Exercise]:
    return [exercise for exercise in every().values() if exercise.unit == number]


def _place(name: str) -> tuple[int, ...]:
    """Where an id stands among others: 09.2 before 09.10."""
    return tuple(map(int, name.split(".")))


def _load(path: Path):
    name = f"course_exercises.{path.parent.name}.{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

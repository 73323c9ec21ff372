"""The pilot exercises as a lab, and workers in the real sandbox with small limits."""

import json
from pathlib import Path

import pytest

from course.checking.answer import source_of
from course.exercises import every
from course.grading.grade import Lab, grade_one
from course.grading.sandbox import Limits, level
from course.grading.submission import Submission
from course.grading.workers import Workers

PILOTS = Path(__file__).parents[1] / "pilot"
SMALL = Limits(memory=1 << 28, seconds=20, case=5.0)


@pytest.fixture(scope="module")
def pilots():
    """Exercises by id, with the pilots among them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_EXERCISES", str(PILOTS))
        every.cache_clear()
        yield every()
    every.cache_clear()


@pytest.fixture(scope="module")
def workers(pilots):
    if level()[0] != "A":
        pytest.skip(" ".join(level()[1:]))
    with Workers(limits=SMALL) as started:
        yield started


def cell(source: str, *tags: str) -> dict:
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def book(answers: dict[str, str], *more: dict) -> dict:
    """A notebook with an answer cell for each id."""
    cells = [cell(f"# exercise {name}\n{source}", f"exercise:{name}") for name, source in answers.items()]
    return {"cells": [*more, *cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def save(path: Path, notebook: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook))
    return path


def answer(exercise, function=None) -> str:
    return source_of(function or exercise.reference, exercise.entry)


@pytest.fixture
def lab(pilots, tmp_path, monkeypatch):
    """A course whose only lab, 90, holds two of the pilots."""
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path / "root"))
    chosen = tuple(pilots[name] for name in ("05.9", "07.9"))
    save(tmp_path / "root" / "solutions" / "90_pilots.ipynb", book({e.id: answer(e) for e in chosen}))
    return Lab("90_pilots", chosen)


@pytest.fixture
def graded(pilots, workers, tmp_path):
    """Grade one answer, or one notebook, in the sandbox: the verdict, and the grade it is part of."""

    def run(source: str | dict, name: str = "05.9"):
        notebook = source if isinstance(source, dict) else book({name: source})
        grade = grade_one(Submission("ann", save(tmp_path / "ann.ipynb", notebook)), [pilots[name]], workers)
        return grade.verdicts[name], grade

    return run

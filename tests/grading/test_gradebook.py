"""What an instructor's tools read: a gradebook that is safe to open, and results in Gradescope's form."""

import csv
import json

import pytest

from course.checking.judge import Case, Verdict
from course.grading.gradebook import Grade, plain, write_gradebook, write_results


@pytest.fixture
def exercises(pilots):
    return [pilots["05.9"], pilots["07.9"]]


def verdict(exercise, status, **more):
    return Verdict(exercise.id, exercise.title, exercise.points, status, **more)


def rows(path):
    with open(path, newline="") as lines:
        return list(csv.reader(lines))


def test_the_gradebook_has_a_row_a_student_and_a_column_an_exercise(tmp_path, exercises):
    passed = {e.id: verdict(e, "passed") for e in exercises}
    grades = [Grade("ann", passed), Grade("bob", {}, ("bob.ipynb is empty.",), complete=False)]
    write_gradebook(tmp_path / "gradebook.csv", grades, exercises)
    assert rows(tmp_path / "gradebook.csv") == [
        ["student", "total", "05.9", "07.9", "note"],
        ["ann", "20", "10", "10", ""],
        ["bob", "0", "0", "0", "bob.ipynb is empty."],
    ]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(tmp_path, exercises, name):
    write_gradebook(tmp_path / "g.csv", [Grade(name, {}, (name,))], exercises)
    student, *_, note = rows(tmp_path / "g.csv")[1]
    assert student.startswith("'")
    assert note.startswith("'")


def test_results_are_in_gradescopes_form(tmp_path, exercises):
    first, second = exercises
    failed = verdict(
        second, "failed", cases=(Case(0, "V=2", "wanted 1, got 2"),), total=15, misconception="inverted-ratio"
    )
    grade = Grade("ann", {first.id: verdict(first, "passed"), second.id: failed}, ("A note.",))
    write_results(tmp_path / "ann" / "results.json", grade, exercises, "A")
    results = json.loads((tmp_path / "ann" / "results.json").read_text())
    assert results["score"] == 10
    assert results["output"] == "A note."
    assert results["extra_data"] == {"isolation": "A", "complete": True}
    assert [(t["score"], t["max_score"], t["status"]) for t in results["tests"]] == [
        (10, 10, "passed"),
        (0, 10, "failed"),
    ]
    assert "wanted 1, got 2" in results["tests"][1]["output"]
    assert results["tests"][1]["extra_data"] == {
        "exercise": "07.9",
        "verdict": "failed",
        "misconception": "inverted-ratio",
    }


def test_an_exercise_that_was_not_graded_is_in_the_results_with_nothing(tmp_path, exercises):
    write_results(tmp_path / "r.json", Grade("ann", {}, complete=False), exercises, "C")
    tests = json.loads((tmp_path / "r.json").read_text())["tests"]
    assert [(t["score"], t["extra_data"]["verdict"]) for t in tests] == [(0, "not graded")] * 2


def test_what_a_student_wrote_is_plain_text():
    assert plain("a\x1b[2Jb\u202e\ud800\0") == "a?[2Jb???"
    assert plain("a\tb\n") == "a b\n"
    assert len(plain("x" * 10**6)) == 4000

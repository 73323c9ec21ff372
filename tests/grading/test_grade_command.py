"""`course grade` as an instructor calls it: one broken submission never stops the others, and the exit code tells."""

import csv
import json

import pytest
from conftest import answer, book, save

from course.grading import GradingError, grade
from course.grading.command import grade_command
from course.grading.grade import find_lab


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def gradebook(out):
    with open(out / "gradebook.csv", newline="") as lines:
        return {row["student"]: row for row in csv.DictReader(lines)}


def test_a_class_is_graded_and_one_broken_notebook_does_not_stop_it(lab, workers, tmp_path, out, capsys):
    right = {e.id: answer(e) for e in lab.exercises}
    wrong = right | {"05.9": answer(lab.exercises[0], lab.exercises[0].misconceptions[0].answer)}
    folder = tmp_path / "class"
    (folder / "broken.ipynb").parent.mkdir()
    (folder / "broken.ipynb").write_text("{")
    save(folder / "ann.ipynb", book(right))
    save(folder / "carl" / "90_pilots.ipynb", book(wrong))
    assert grade_command("90", out, [folder]) == 1
    book_of = gradebook(out)
    assert {name: row["total"] for name, row in book_of.items()} == {"ann": "20", "broken": "0", "carl": "10"}
    assert "broken.ipynb is not a notebook: it is not valid JSON" in book_of["broken"]["note"]
    results = {name: json.loads((out / name / "results.json").read_text()) for name in book_of}
    assert {name: r["score"] for name, r in results.items()} == {"ann": 20, "broken": 0, "carl": 10}
    assert {r["extra_data"]["isolation"] for r in results.values()} == {"A"}
    assert results["carl"]["tests"][0]["extra_data"]["misconception"] == "single-best"
    assert not list(out.rglob("*.tmp"))
    said = capsys.readouterr().out
    assert said.startswith("Sandbox level A.")
    assert "carl" in said


def test_without_isolation_each_result_says_so(lab, tmp_path, out, capsys):
    path = save(tmp_path / "ann.ipynb", book({}))
    assert grade_command("90", out, [path], isolation=False) == 0
    assert json.loads((out / "ann" / "results.json").read_text())["extra_data"]["isolation"] == "C"
    assert capsys.readouterr().out.startswith("Sandbox level C. Answers run as plain processes with your rights.")


def test_a_grader_that_fails_on_one_submission_goes_on_and_says_so(lab, workers, tmp_path, out, monkeypatch):
    def judge(exercise, source, *_, **__):
        if "crash" in source:
            raise KeyError("launches")
        return real(exercise, None, {})

    real = grade.judge
    monkeypatch.setattr(grade, "judge", judge)
    for name, source in (("ann", "crash"), ("bob", "x = 1")):
        save(tmp_path / f"{name}.ipynb", book({e.id: source for e in lab.exercises}))
    assert grade_command("90", out, [tmp_path / "ann.ipynb", tmp_path / "bob.ipynb"]) == 1
    assert "05.9 could not be graded: The grader failed (KeyError)." in gradebook(out)["ann"]["note"]
    assert json.loads((out / "ann" / "results.json").read_text())["score"] == 0
    assert json.loads((out / "bob" / "results.json").read_text())["extra_data"]["complete"]


def test_wrong_use_is_one_sentence_and_exit_code_2(lab, workers, tmp_path, out, capsys):
    path = save(tmp_path / "ann.ipynb", book({}))
    (tmp_path / "file").write_text("")
    for wrong in [("77", out, [path]), ("90", out, [tmp_path / "nobody"]), ("90", tmp_path / "file", [path])]:
        assert grade_command(*wrong) == 2
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1
        assert "Traceback" not in said.err + said.out


def test_a_labs_exercises_are_those_of_its_solution_in_order(lab):
    assert find_lab("90") == lab


def test_a_lab_without_exercises_or_with_unknown_ones_cannot_be_graded(lab, tmp_path):
    solution = tmp_path / "root" / "solutions" / "90_pilots.ipynb"
    save(solution, book({}))
    with pytest.raises(GradingError, match="no exercise"):
        find_lab("90")
    save(solution, book({"90.1": "x = 1"}))
    with pytest.raises(GradingError, match=r"no specification of exercise 90\.1"):
        find_lab("90")
    solution.write_text("")
    with pytest.raises(GradingError, match="course build 90"):
        find_lab("90")

"""Which notebook is whose, whatever files are called and hold."""

import os

import pytest
from conftest import book, save

from course.authoring.answers import NotebookError
from course.grading import GradingError
from course.grading.submission import Submission, answers, safe, submissions

LAB = "90_pilots"


def students(*paths):
    return [submission.student for submission in submissions(paths, LAB)]


def test_a_student_is_called_as_the_file(tmp_path):
    assert students(save(tmp_path / "ann lee.ipynb", book({}))) == ["ann lee"]


def test_a_file_that_kept_the_labs_name_belongs_to_its_folder(tmp_path):
    assert students(save(tmp_path / "bob" / "90_pilots.ipynb", book({}))) == ["bob"]


def test_a_folder_holds_files_and_students_folders(tmp_path):
    save(tmp_path / "ann.ipynb", book({}))
    save(tmp_path / "bob" / "90_pilots.ipynb", book({}))
    save(tmp_path / "bob" / "notes.ipynb", book({}))
    save(tmp_path / "cy" / "work" / "mine.ipynb", book({}))
    save(tmp_path / ".ipynb_checkpoints" / "ann-checkpoint.ipynb", book({}))
    found = submissions([tmp_path], LAB)
    assert [submission.student for submission in found] == ["ann", "bob", "cy"]
    assert found[1].path.name == "90_pilots.ipynb"
    assert not any(submission.fault for submission in found)


def test_a_folder_without_the_one_notebook_is_a_submission_that_cannot_be_read(tmp_path):
    (tmp_path / "ann").mkdir()
    save(tmp_path / "bob" / "a.ipynb", book({}))
    save(tmp_path / "bob" / "b.ipynb", book({}))
    faults = [submission.fault for submission in submissions([tmp_path], LAB)]
    assert faults == [
        "The folder 'ann' holds no notebook (.ipynb).",
        "The folder 'bob' holds 2 notebooks; keep 90_pilots.ipynb alone.",
    ]


def test_names_that_are_not_there_are_wrong_use(tmp_path):
    with pytest.raises(GradingError, match="no file or folder"):
        submissions([tmp_path / "nobody.ipynb"], LAB)
    with pytest.raises(GradingError, match="holds no notebook"):
        submissions([tmp_path], LAB)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("../../etc/ann", "etc_ann"),
        ("ann\nlee", "ann_lee"),
        ("-rf", "rf"),
        ("=HYPERLINK(1)", "HYPERLINK_1_"),
        ("@ann", "ann"),
        ("...", "student"),
        ("Zoë 李", "Zoë 李"),
        ("\u202egnp.exe", "gnp.exe"),
        ("a" * 300, "a" * 80),
        ("\udce9", "student"),
        ("ann@school.edu", "ann@school.edu"),
    ],
)
def test_a_students_name_is_safe_as_a_folder(name, folder):
    assert safe(name) == folder


def test_two_students_of_one_name_are_told_apart(tmp_path):
    paths = [save(tmp_path / place / "Ann.ipynb", book({})) for place in "abc"]
    found = submissions(paths, LAB)
    assert [submission.student for submission in found] == ["Ann", "Ann-2", "Ann-3"]
    assert found[1].notes == ("Another submission has the name 'Ann', so this one is 'Ann-2'.",)


def test_a_student_cannot_take_the_gradebooks_name(tmp_path):
    assert students(save(tmp_path / "Gradebook.csv.ipynb", book({}))) == ["Gradebook.csv-2"]


def test_a_link_is_not_followed(tmp_path):
    other = save(tmp_path / "other" / "bob.ipynb", book({"05.9": "stolen"}))
    os.symlink(other, tmp_path / "ann.ipynb")
    (submission,) = submissions([tmp_path / "ann.ipynb"], LAB)
    with pytest.raises(NotebookError, match="is a link"):
        answers(submission, ["05.9"])


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "ann.ipynb")
    (submission,) = submissions([tmp_path / "ann.ipynb"], LAB)
    with pytest.raises(NotebookError, match="no plain file"):
        answers(submission, ["05.9"])


def test_a_cell_of_a_hundred_thousand_lines_is_refused(tmp_path):
    path = save(tmp_path / "ann.ipynb", book({"05.9": "0;" * 100_000}))
    with pytest.raises(NotebookError, match="100,000 characters"):
        answers(Submission("ann", path), ["05.9"])


def test_a_notebook_without_the_labs_cells_is_told(tmp_path):
    notes = answers(Submission("ann", save(tmp_path / "ann.ipynb", book({"04.1": "x = 1"}))), ["05.9"]).notes
    assert len(notes) == 1

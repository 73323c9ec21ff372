import os

import pytest
from tiny_course import write_course

from course.authoring.build import build
from course.authoring.places import unit
from course.authoring.reading import read_notebook
from course.authoring.workspace import WorkspaceError, dump, open_unit

ANSWER = "# exercise 04.1\ndef square(x):\n    return x * x"


@pytest.fixture
def released(built, home, monkeypatch):
    """A built course, and an empty workspace."""
    monkeypatch.setenv("COURSE_ROOT", str(built))
    return built


def opened(root):
    said = []
    path = open_unit(unit("04", root), said.append)
    return path, said


def state(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def solve(path):
    book = read_notebook(path)
    book["cells"][3]["source"] = ANSWER
    path.write_text(dump(book))


def release_again(root):
    source = root / "solutions" / "04_squares.py"
    source.write_text(source.read_text().replace("That is all", "That is more"))
    assert build(None, root, tell=lambda line: None) == []


def test_the_first_opening_copies_lesson_lab_and_guides(released, home):
    (released / "labs" / "AGENTS.md").write_text("Tutor.")
    path, said = opened(released)
    assert (path, said) == (home / "labs" / "04_squares.ipynb", [])
    assert sorted(map(str, state(home))) == [
        ".moe-to-metal",
        "labs/04_squares.ipynb",
        "labs/AGENTS.md",
        "notebooks/04_squares.ipynb",
    ]
    assert path.read_bytes() == (released / "labs" / "04_squares.ipynb").read_bytes()


def test_the_same_release_changes_nothing(released, home):
    solve(opened(released)[0])
    before = state(home)
    assert opened(released)[1] == []
    assert state(home) == before


def test_a_deleted_answer_cell_or_check_comes_back(released, home):
    path, _ = opened(released)
    solve(path)
    whole = read_notebook(path)
    for lost in ("ex-04-1-check", "ex-04-2-answer"):
        book = {**whole, "cells": [cell for cell in whole["cells"] if cell["id"] != lost]}
        path.write_text(dump(book))
        assert "has its missing cells again" in opened(released)[1][0]
        assert read_notebook(path)["cells"] == whole["cells"]


def test_a_new_release_keeps_the_answers_and_a_backup(released, home):
    path, _ = opened(released)
    solve(path)
    before = path.read_bytes()
    release_again(released)
    _, said = opened(released)
    book = read_notebook(path)
    assert book["cells"][3]["source"] == ANSWER
    assert book["cells"][8]["source"] == "That is more."
    assert (home / ".backup" / "labs" / "04_squares.1.ipynb").read_bytes() == before
    assert said == [
        "labs/04_squares.ipynb follows the new release: your answers and the cells you added are kept. "
        "Your copy as it was, with any other change, is .backup/labs/04_squares.1.ipynb."
    ]
    after = state(home)
    assert opened(released)[1] == []
    assert state(home) == after


def test_a_copy_that_cannot_be_read_is_moved_aside_and_never_overwritten(released, home):
    path, _ = opened(released)
    for number in (1, 2):
        path.write_text("{ half a notebook")
        _, said = opened(released)
        aside = home / "labs" / f"04_squares.unreadable-{number}.ipynb"
        assert aside.read_text() == "{ half a notebook"
        assert f"It is now {aside.name}, and labs/04_squares.ipynb is a fresh copy." in said[0]
    assert read_notebook(path)["cells"]


def test_a_read_only_course_is_enough(released, home):
    for path in released.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        path, _ = opened(released)
        solve(path)
        assert os.stat(path).st_mode & 0o200
        assert not any(file.stat().st_mode & 0o222 for file in released.rglob("*"))
    finally:
        for path in [released, *released.rglob("*")]:
            path.chmod(0o755)


def test_a_unit_that_is_not_built_and_a_workspace_that_cannot_be_are_one_sentence(tmp_path, monkeypatch, released):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "taken"))
    with pytest.raises(WorkspaceError, match=r"The workspace .*taken cannot be written: "):
        opened(released)
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "clone"))
    (tmp_path / "clone" / "solutions").mkdir(parents=True)
    (tmp_path / "clone" / "pyproject.toml").touch()
    with pytest.raises(WorkspaceError, match="holds a copy of the course itself: set COURSE_HOME"):
        opened(released)
    monkeypatch.setenv("COURSE_ROOT", str(write_course(tmp_path / "unbuilt")))
    with pytest.raises(WorkspaceError, match="Lab 04 is not built: run `course build 04`"):
        opened(tmp_path / "unbuilt")

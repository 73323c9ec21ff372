from pathlib import Path

import pytest
from tiny_course import LESSON, SOLUTION, write_course

from course.authoring import places


def test_the_root_is_the_clone_and_can_be_told(monkeypatch, tmp_path):
    assert (places.root() / "course" / "authoring").is_dir()
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    assert places.root() == tmp_path


def test_home_is_the_nearest_folder_with_the_marker(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_HOME")
    (tmp_path / "labs" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "labs" / "deep")
    assert places.home() is None
    (tmp_path / ".moe-to-metal").touch()
    assert places.home() == tmp_path
    assert places.workspace() == tmp_path
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "told"))
    assert places.home() == tmp_path / "told"


def test_a_clone_has_its_workspace_inside_and_an_install_in_the_users_home(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_HOME")
    monkeypatch.chdir(tmp_path)
    assert places.workspace() == places.root() / "workspace"
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "site-packages" / "course")
    assert places.workspace() == Path.home() / "moe-to-metal"
    assert places.root() == tmp_path / "site-packages" / "course" / "_data"


def test_units_are_those_with_a_solution_and_are_found_by_any_of_their_names(tmp_path):
    write_course(tmp_path)
    write_course(tmp_path, LESSON, SOLUTION.replace("# # Lab 04: squares", "no heading"), slug="11_moe_kernels")
    (tmp_path / "notebooks" / "05_only_a_lesson.py").write_text(LESSON)
    assert [(unit.number, unit.title) for unit in places.units(tmp_path)] == [("04", "Squares"), ("11", "Squares")]
    assert places.unit("4", tmp_path) == places.unit("04_squares", tmp_path) == places.unit("04", tmp_path)
    with pytest.raises(places.UnknownUnit, match="no unit 5; there is 04, 11"):
        places.unit("5", tmp_path)


def test_a_unit_without_its_source_is_known_by_the_built_notebook(built):
    for source in built.glob("*/*.py"):
        source.unlink()
    assert [unit.title for unit in places.units(built)] == ["Squares"]

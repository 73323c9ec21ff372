import pytest

from course.authoring.build import build
from course.checking.answer import source_of
from course.checking.judge import judge
from course.exercises import every
from course.new_unit import NewUnitError, new_unit_command


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone that has no unit, and knows the exercises in it."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "solutions").mkdir()
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    monkeypatch.setenv("COURSE_EXERCISES", str(tmp_path / "course" / "exercises"))
    every.cache_clear()
    yield tmp_path
    every.cache_clear()


def test_a_new_unit_builds_and_its_check_knows_right_from_wrong(clone):
    new_unit_command("73_sparse_attention")
    assert build(None, clone, tell=lambda line: None) == []
    assert build(None, clone, only_check=True) == []
    exercise = every()["73.1"]
    for right in (exercise.reference, *exercise.alternatives):
        assert judge(exercise, source_of(right, exercise.entry), every()).passed
    for wrong in exercise.misconceptions:
        assert judge(exercise, source_of(wrong.answer, exercise.entry), every()).misconception == wrong.name


def test_a_number_that_is_taken_and_a_name_of_another_form_are_refused(clone):
    new_unit_command("73_sparse_attention")
    with pytest.raises(NewUnitError, match="Unit 73 exists already"):
        new_unit_command("73_other")
    for name in ("nonsense", "7_short", "74-hyphen", "../74_up"):
        with pytest.raises(NewUnitError, match="is not a unit's name"):
            new_unit_command(name)


def test_an_installed_course_begins_no_unit(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    with pytest.raises(NewUnitError, match="clone"):
        new_unit_command("73_sparse_attention")

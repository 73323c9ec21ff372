import json
import subprocess
import sys

import pytest
from tiny_course import SETUP, write_course

from course.authoring.build import build
from course.authoring.gate import check
from course.authoring.new_unit import NewUnitError, new_unit
from course.authoring.places import units
from course.authoring.source import read_source


@pytest.fixture
def clone(tmp_path):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "solutions").mkdir()
    return tmp_path


def test_a_new_unit_has_sources_without_a_fault(clone):
    written = new_unit("77", "centred_rows", "Centred rows", clone)
    assert [str(path.relative_to(clone)) for path in written] == [
        "notebooks/77_centred_rows.py",
        "solutions/77_centred_rows.py",
        "course/exercises/u77/__init__.py",
        "course/exercises/u77/centre.py",
    ]
    assert [unit.title for unit in units(clone)] == ["Centred rows"]
    read_source(written[0], "lesson")
    read_source(written[1], "solution")
    assert "@" not in "".join(path.read_text() for path in written)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "-q", *written[2:]], check=True)


def test_its_set_up_cell_is_that_of_the_labs_that_stand(clone):
    write_course(clone, None)
    _, solution, *_ = new_unit("77", "centred_rows", "Centred rows", clone)
    assert SETUP in solution.read_text()
    assert not [fault for fault in check(None, clone) if "set-up cell" in fault]


@pytest.mark.slow
def test_a_new_unit_builds_and_its_solution_passes(clone, monkeypatch):
    monkeypatch.setenv("COURSE_EXERCISES", str(clone / "course" / "exercises"))
    new_unit("77", "centred_rows", "Centred rows", clone)
    assert build(None, clone, tell=lambda line: None) == []
    assert build(None, clone, only_check=True) == []
    solution = json.loads((clone / "solutions" / "77_centred_rows.ipynb").read_text())
    assert "77.1 centred rows: passed, 5 points" in json.dumps(solution)


@pytest.mark.parametrize(
    ("number", "slug", "title", "says"),
    [
        ("7", "x", "X", "two digits"),
        ("07", "Deep MoE", "X", "small letters"),
        ("07", "x", "  ", "one line of text"),
        ("77", "other", "X", "There is a unit 77 already: 77_centred_rows."),
    ],
)
def test_a_number_or_name_that_cannot_be_is_one_sentence(clone, number, slug, title, says):
    new_unit("77", "centred_rows", "Centred rows", clone)
    with pytest.raises(NewUnitError, match=says):
        new_unit(number, slug, title, clone)


def test_nothing_is_written_over_and_an_install_cannot_be_added_to(clone, tmp_path):
    (clone / "notebooks").mkdir()
    (clone / "notebooks" / "77_x.py").touch()
    with pytest.raises(NewUnitError, match=r"notebooks/77_x\.py exists already"):
        new_unit("77", "x", "X", clone)
    assert not (clone / "course").exists()
    with pytest.raises(NewUnitError, match="an installed copy"):
        new_unit("77", "x", "X", tmp_path / "site-packages")

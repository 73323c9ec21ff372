"""README says what is so: its unit table, its commands, its links, and what make offers."""

import re
import subprocess
from pathlib import Path

import pytest
import typer

from course.authoring import places
from course.cli import app
from course.exercises import of_unit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("unit", places.units(ROOT), ids=lambda unit: unit.number)
def test_the_table_gives_a_standing_units_minutes_and_short_path(unit):
    row = next(line for line in README.splitlines() if line.startswith(f"| {unit.number} |"))
    _, _, _, minutes, short, _ = (cell.strip() for cell in row.split("|"))
    assert int(minutes.split("+")[1]) == sum(exercise.minutes for exercise in of_unit(unit.number))
    assert re.findall(r"\d\d\.\d+", short) == [exercise.id for exercise in of_unit(unit.number) if exercise.spine]
    if unit.source("lesson", ROOT).is_file():
        told = re.search(r"About (\d+) minutes", unit.source("lesson", ROOT).read_text())
        assert told[1] == minutes.split()[0]


def test_units_that_do_not_stand_are_said_to_come():
    standing = {unit.number for unit in places.units(ROOT)}
    for number, rest in re.findall(r"^\| (\d\d) (\|.*)$", README, re.MULTILINE):
        assert ("to come" in rest) == (number not in standing), number


def test_every_command_in_readme_and_contributing_exists():
    known = set(typer.main.get_command(app).commands)
    told = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:^|`)course ([a-z-]+)", told, re.MULTILINE))
    assert named <= known
    assert known - named == set()


def test_every_make_target_that_is_named_exists_and_has_a_line_of_help():
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    offered = set(re.findall(r"^ +make ([a-z-]+) +\S", told, re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert named <= offered
    assert offered == {"help", "install", "lab", "test", "test-fast", "test-deep", "test-triton", "build", "clean"}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_link_within_the_repository_leads_somewhere(document):
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
        assert (ROOT / link).exists(), link

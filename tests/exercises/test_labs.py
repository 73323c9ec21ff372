"""Each lab against its specifications: the cards, the set-up cell, and the solution's answers as a grader takes them."""

import ast
import secrets

import pytest

from course.authoring import marks, places
from course.authoring.answers import find_answers
from course.checking.answer import prelude
from course.checking.judge import draw
from course.checking.launch import forked
from course.checking.result import text
from course.exercises import of_unit

from specifications import EVERY, cells_of, judged  # isort: skip

UNITS = places.units(places.PACKAGE.parent)
each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.number)


def roles(cells: list[dict], role: str) -> list[str]:
    return [named[1] for named in map(marks.role_of, cells) if named and named[0] == role]


def names_set_up(source: str) -> set[str]:
    """The names that a set-up cell leaves behind."""
    left = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            left.add(node.id)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del):
            left.discard(node.id)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            left.add(node.name)
    return left


@each_unit
def test_a_lab_asks_for_every_exercise_of_its_unit_once_in_order(unit):
    cells = cells_of(unit, "lab")
    ids = [exercise.id for exercise in of_unit(unit.number)]
    assert roles(cells, "exercise") == roles(cells, "check") == ids != []


@each_unit
def test_the_card_before_an_answer_says_what_the_specification_says(unit):
    cells = cells_of(unit, "lab")
    for place, cell in enumerate(cells):
        role, name = marks.role_of(cell) or (None, None)
        if role == "exercise":
            e = EVERY[name]
            card = f"**Exercise {name}** · difficulty {e.difficulty} of 5 · {e.minutes} minutes · {e.points} points"
            card += " · spine" if e.spine else ""
            before = [c["source"] for c in cells[:place] if c["cell_type"] == "markdown"][-1]
            assert [line for line in before.splitlines() if line.startswith("**Exercise")] == [card]
            assert marks.CARD.search(card)


@each_unit
def test_the_set_up_cell_gives_exactly_what_an_answer_may_rely_on(unit):
    setup = next(cell for cell in cells_of(unit, "lab") if "setup" in cell["metadata"].get("tags", []))
    allowed = set().union(*(names_set_up(prelude(exercise)) for exercise in of_unit(unit.number)))
    assert names_set_up(setup["source"]) == allowed | {"check", "mine"}


@each_unit
def test_a_check_cell_checks_the_entry_of_its_exercise(unit):
    for cell in cells_of(unit, "lab"):
        role, name = marks.role_of(cell) or (None, None)
        if role == "check":
            assert cell["source"].strip() == f'check("{name}", {EVERY[name].entry})'


@each_unit
def test_an_answer_cell_has_the_arguments_that_inputs_draws(unit):
    for cell in cells_of(unit, "lab"):
        role, name = marks.role_of(cell) or (None, None)
        if role == "exercise":
            found = [node for node in ast.parse(cell["source"]).body if isinstance(node, ast.FunctionDef)]
            entry = next(node for node in found if node.name == EVERY[name].entry)
            assert [argument.arg for argument in entry.args.args] == list(draw(EVERY[name], 0, 0))
            assert ast.get_docstring(entry), f"{name} has no docstring"


@each_unit
def test_a_blank_lab_is_not_done_and_its_solution_passes_in_secret(unit):
    ids = [exercise.id for exercise in of_unit(unit.number)]
    for kind in ("lab", "solution"):
        answers, faults, _ = find_answers({"cells": cells_of(unit, kind), "metadata": {}}, ids)
        assert not faults
        assert list(answers) == ids
        for name, answer in answers.items():
            exercise = EVERY[name]
            for seed in [None] if kind == "lab" else [None, secrets.randbits(64)]:
                verdict = judged(exercise, answer, seed, start=forked)
                assert verdict.status == ("passed" if kind == "solution" else "not done"), f"{seed}\n{text(verdict)}"

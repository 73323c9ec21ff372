"""A newer release of a notebook, merged into a learner's copy.

The learner's answers stay, and so do the cells that they added, each after the cell that it followed. Everything else
comes from the release. A cell of the former release is known by its id, else by its exercise, else by its text.
"""

import copy as copying
from itertools import count
from typing import Any

from course.authoring import marks
from course.authoring.answers import answer_places
from course.authoring.reading import Notebook

Cell = dict[str, Any]


def merge(copy: Notebook, release: Notebook) -> Notebook:
    """The release with the learner's answers and own cells in it; merging the result again changes nothing."""
    release = copying.deepcopy(release)
    new = {cell["id"]: cell for cell in release["cells"]}
    prints = {name: marks.fingerprint(cell) for name, cell in new.items()}
    old = _former(copy) or prints
    claims = _claims(copy["cells"], old)
    own: dict[str | None, list[Cell]] = {}
    anchor = None
    for place, cell in enumerate(copy["cells"]):
        name = claims.get(place)
        touched = name is not None and marks.fingerprint(cell) not in (old[name], prints.get(name))
        answers = name is not None and name.endswith("-answer")
        if name is None or (answers and touched and name not in new):
            own.setdefault(anchor, []).append(copying.deepcopy(cell))
            continue
        if answers and touched:
            new[name] = _kept(cell, new[name])
        anchor = _place(name, old[name], prints) or anchor
    taken = set(new)
    cells: list[Cell] = []
    for name in (None, *new):
        cells += [new[name]] if name else []
        for cell in own.get(name, []):
            _name(cell, taken)
            cells.append(cell)
    return release | {"cells": cells}


def _former(copy: Notebook) -> dict[str, str]:
    """Fingerprints by cell id of the release that a copy came from, as the build stored them."""
    stored = marks.about(copy).get("cells")
    return {k: v for k, v in stored.items() if isinstance(v, str)} if isinstance(stored, dict) else {}


def _claims(cells: list[Cell], old: dict[str, str]) -> dict[int, str]:
    """Which cell of the copy (by place) is which cell of the former release (by id)."""
    prints = [marks.fingerprint(cell) for cell in cells]
    roles = {marks.cell_id(*role): role for role in map(_role, old) if role}
    claims: dict[int, str] = {}

    def claim(name: str, places: list[int]) -> None:
        free = [place for place in places if place not in claims]
        if free and name not in claims.values():
            same = [place for place in free if prints[place] == old[name]]
            claims[(same or free)[0]] = name

    for name in old:
        claim(name, [place for place, cell in enumerate(cells) if cell.get("id") == name])
    for name, (role, exercise) in roles.items():
        if role == "exercise":
            claim(name, answer_places(cells, exercise))
        else:
            claim(name, [place for place, cell in enumerate(cells) if marks.role_of(cell) == (role, exercise)])
    for name in old:
        claim(name, [place for place in range(len(cells)) if prints[place] == old[name]])
    return claims


def _role(name: str) -> tuple[str, str] | None:
    return marks.role_of({"metadata": {}, "id": name})


def _place(name: str, text: str, prints: dict[str, str]) -> str | None:
    """Where a cell of the former release is in the new one: the cell with its id, or with its text."""
    if prints.get(name) == text or (name in prints and _role(name)):
        return name
    return next((new for new, fingerprint in prints.items() if fingerprint == text), name if name in prints else None)


def _kept(cell: Cell, released: Cell) -> Cell:
    """The learner's cell with the id and the tags of the release."""
    tags = released["metadata"].get("tags", [])
    more = [tag for tag in cell["metadata"].get("tags", []) if tag not in tags]
    return copying.deepcopy(cell) | {"id": released["id"], "metadata": cell["metadata"] | {"tags": tags + more}}


def _name(cell: Cell, taken: set[str]) -> None:
    """Give a learner's cell an id where it has none, or one that another cell has."""
    if cell.get("id") in taken | {None}:
        cell["id"] = next(name for name in map("own-{}".format, count(1)) if name not in taken)
    taken.add(cell["id"])

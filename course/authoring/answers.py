"""Finding a learner's answers in their notebook.

An answer is the whole text of the cell that is tagged `exercise:04.1` (or has its id), or that holds the line
`# exercise 04.1`. Cells are counted from 1, as a learner would.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

from course.authoring import marks
from course.authoring.reading import Notebook, NotebookError, read_notebook

__all__ = ["NotebookError", "answer_places", "find_answers", "overlay", "read_notebook"]


def find_answers(notebook: Notebook, ids: Sequence[str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The learner's answers to the exercises `ids`, out of a notebook that `read_notebook` returned.

    Returns: answers, id to text (none where the cell is missing or empty); faults, id to one sentence, where an answer
    cannot be taken; notes about the notebook as a whole, one sentence each.
    """
    cells = notebook["cells"]
    entries = {call[1]: call[2] for cell in cells if cell["cell_type"] == "code" for call in _calls(cell)}
    answers: dict[str, str] = {}
    faults: dict[str, str] = {}
    for name in ids:
        try:
            text = _answer(cells, name, entries.get(name))
        except _Fault as fault:
            faults[name] = str(fault)
        else:
            if text is not None:
                answers[name] = text
    return answers, faults, _notes(notebook, ids)


class _Fault(Exception):
    """Why an answer cannot be taken."""


def answer_places(cells: Sequence[dict[str, Any]], name: str) -> list[int]:
    """The places, from 0, of the cells that claim to answer an exercise, by tag, id or marker line."""
    return [
        place
        for place, cell in enumerate(cells)
        if marks.role_of(cell) == ("exercise", name)
        or (cell["cell_type"] == "code" and name in marks.MARKER.findall(cell["source"]))
    ]


def _answer(cells: list[dict[str, Any]], name: str, entry: str | None) -> str | None:
    places = answer_places(cells, name)
    code = [place for place in places if cells[place]["cell_type"] == "code"]
    if places and not code:
        raise _Fault(
            f"The answer cell of {name} (cell {places[0] + 1}) was turned into a {cells[places[0]]['cell_type']} cell: "
            "make it a code cell again."
        )
    held = [place for place in code if _does_something(cells[place]["source"])]
    texts = {cells[place]["source"].strip(): place for place in held}
    if len(texts) > 1:
        texts = {text: place for text, place in texts.items() if not marks.EMPTY.search(text)} or texts
        marked = [place for place in held if name in marks.MARKER.findall(cells[place]["source"])]
        if len(marked) == 1:
            raise _Fault(f"The answer to {name} was split over {_cells(held)}: join them into one cell again.")
        if len(texts) > 1:
            raise _Fault(f"Different answers to {name} stand in {_cells(sorted(texts.values()))}: keep one of them.")
    text = next(iter(texts), None)
    if entry and not _defines(text or "", entry):
        elsewhere = [
            place
            for place, cell in enumerate(cells)
            if cell["cell_type"] == "code" and not marks.role_of(cell) and _defines(cell["source"], entry)
        ]
        if elsewhere:
            raise _Fault(
                f"`{entry}` stands in {_cells(elsewhere)} and not in the answer cell of {name}: move all of it into one "
                f"cell that begins with the line `# exercise {name}`."
            )
    if text is None:
        return None
    if "\0" in text:
        raise _Fault(f"The answer to {name} holds a NUL character: delete it, it may be invisible.")
    return cells[texts[text]]["source"]


def _calls(cell: dict[str, Any]) -> list[re.Match]:
    return list(marks.CHECK.finditer(cell["source"]))


def _defines(text: str, entry: str) -> bool:
    return re.search(rf"^(async )?def {entry}\b", text, re.MULTILINE) is not None


def _does_something(text: str) -> bool:
    return any(line.strip() and not line.strip().startswith("#") for line in text.splitlines())


def _cells(places: list[int]) -> str:
    """Places in words: cells 3 and 5 (counted from the top)."""
    numbers = [str(place + 1) for place in places]
    if len(numbers) == 1:
        return f"cell {numbers[0]} (counted from the top)"
    return f"cells {', '.join(numbers[:-1])} and {numbers[-1]} (counted from the top)"


def _notes(notebook: Notebook, ids: Sequence[str]) -> list[str]:
    if not ids:
        return []
    cells, wanted = notebook["cells"], ids[0].split(".")[0]
    unit, kind = (marks.about(notebook).get(key) for key in ("unit", "kind"))
    units = {role[1].split(".")[0] for role in map(marks.role_of, cells) if role}
    units |= {name.split(".")[0] for cell in cells for name in marks.MARKER.findall(cell["source"])}
    if units and wanted not in units:
        return [f"This is lab {min(units)}, not lab {wanted}."]
    if kind == "lesson":
        return [f"This is the lesson of unit {unit}, not lab {wanted}."]
    if not units:
        return [f"This notebook holds no exercise: it is not lab {wanted}."]
    notes = [f"This is the solution notebook of unit {wanted}, not its lab."] if kind == "solution" else []
    for name in ids:
        if not answer_places(cells, name):
            notes.append(f"The answer cell of {name} is missing: `course lab {wanted}` brings it back.")
        checks = [cell for cell in cells if marks.role_of(cell) == ("check", name)]
        if not checks and not any(call[1] == name for cell in cells for call in _calls(cell)):
            notes.append(f"The check cell of {name} is missing.")
        elif any(not (call := marks.CHECK.fullmatch(cell["source"])) or call[1] != name for cell in checks):
            notes.append(f"The check cell of {name} was edited.")
    return notes


def overlay(solution: Notebook, lab: Notebook, answers: dict[str, str]) -> Notebook:
    """The solution notebook with the learner's answers laid over it, and exercises without one blank as in the lab.

    The stored outputs stay the solution's: run by nbval, a check cell fails where the answer does not pass.
    """
    blanks = {role[1]: cell for cell in lab["cells"] if (role := marks.role_of(cell)) and role[0] == "exercise"}
    result = copy.deepcopy(solution)
    for cell in result["cells"]:
        role = marks.role_of(cell)
        if role and role[0] == "exercise":
            cell["source"] = answers.get(role[1], blanks[role[1]]["source"])
    return result

"""Whether the built notebooks are what their sources say, found out without executing anything."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course.authoring import marks
from course.authoring.percent import Source, SourceError
from course.authoring.places import FOLDERS, Unit, root, units
from course.authoring.reading import NotebookError, read_notebook
from course.authoring.source import notebook, read_source

LIMIT = 1_000_000  # bytes of a built notebook
DISTINCTIVE = 12  # characters that make a solution's line worth looking for
SHOWS = {"lab": "not done yet", "solution": "passed"}  # what a check cell's stored output must say


def kinds(unit: Unit, at: Path) -> list[str]:
    """The notebooks a unit has: a lesson where it has been written, always solution and lab."""
    return [kind for kind in FOLDERS if kind != "lesson" or unit.source(kind, at).is_file()]


def check(these: list[Unit] | None = None, at: Path | None = None) -> list[str]:
    """What is wrong with the built notebooks of these units (all of them when None): one sentence each, none when clean."""
    at = at or root()
    every = units(at)
    faults: list[str] = []
    sources: dict[Unit, Source] = {}
    for unit in every if these is None else these:
        for kind in kinds(unit, at):
            try:
                source = sources[unit] = read_source(unit.source(kind, at), kind)
            except SourceError as error:
                faults += [fault for fault in error.faults if fault not in faults]
                sources.pop(unit, None)
                continue
            faults += faults_of(unit, kind, source, at)
        faults += _beyond_the_blocks(unit, at)
    faults += _leaks(sources, every, at)
    faults += _setups(sources)
    if these is None:
        faults += _orphans(at)
    return faults


def faults_of(unit: Unit, kind: str, source: Source, at: Path) -> list[str]:
    """What is wrong with one built notebook, compared with its source."""
    path = unit.notebook(kind, at)
    where, cure = _name(path), f"run `course build {unit.number}`"
    if not path.is_file():
        return [f"{where} is missing: {cure}."]
    try:
        built = read_notebook(path)
    except NotebookError as error:
        return [f"{where} is damaged ({str(error).rstrip('.')}): {cure}."]
    wanted = notebook(source, kind)
    course = dict(marks.about(built))
    stored = course.pop("outputs", None)
    if course.get("source") != source.hash:
        return [f"{where} is older than its source: {cure}."]
    if path.stat().st_size > LIMIT:
        return [f"{where} has {path.stat().st_size:,} bytes, and may have {LIMIT:,}: make its figures smaller."]
    faults = []
    if built["metadata"] | {"course": course} != wanted.metadata or not _same_cells(built["cells"], wanted.cells):
        faults.append(f"{where} differs from its source in cells, ids, tags or metadata: {cure}.")
    if stored != digest(built["cells"]):
        faults.append(f"{where} has lost or changed outputs since it was built: {cure}.")
    return faults + [f"{where}, cell {cell.get('id')}: {says}" for cell in built["cells"] for says in shown(cell, kind)]


def shown(cell: dict[str, Any], kind: str) -> Iterator[str]:
    """What is wrong with a cell's stored outputs."""
    if cell["cell_type"] != "code":
        return
    if not cell["execution_count"]:
        yield "it was not executed."
    for output in cell["outputs"]:
        if output.get("output_type") == "error":
            yield f"its output is an error ({output.get('ename')})."
        if output.get("name") == "stderr":
            yield "its output holds standard error."
    role = marks.role_of(cell)
    if role and role[0] == "check" and SHOWS[kind] not in _text(cell["outputs"]):
        yield f'its output does not say "{SHOWS[kind]}".'


def digest(cells: list[Any]) -> str:
    """A hash of all stored outputs and execution counts."""
    stored = [[cell["execution_count"], cell["outputs"]] for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def _same_cells(built: list[dict], wanted: list[Any]) -> bool:
    keys = "id", "cell_type", "source", "metadata"
    return [[cell.get(key) for key in keys] for cell in built] == [[cell[key] for key in keys] for cell in wanted]


def _beyond_the_blocks(unit: Unit, at: Path) -> Iterator[str]:
    """Cells of the built lab that are not the built solution's with its blocks blanked."""
    try:
        lab, solution = (read_notebook(unit.notebook(kind, at)) for kind in ("lab", "solution"))
    except NotebookError:
        return
    where = _name(unit.notebook("lab", at))
    if len(lab["cells"]) != len(solution["cells"]):
        yield f"{where} has {len(lab['cells'])} cells and its solution {len(solution['cells'])}."
    for mine, theirs in zip(lab["cells"], solution["cells"], strict=False):
        if mine["source"] != marks.blank(theirs["source"]):
            yield f"{where}, cell {mine.get('id')}: it differs from the solution beyond the marked blocks."


def _leaks(sources: dict[Unit, Source], every: list[Unit], at: Path) -> Iterator[str]:
    """Lines of these units' solutions that stand in any lab, where the lab's own text does not give them."""
    secret = {
        line: source
        for source in sources.values()
        for cell in source.cells
        for line in marks.solution_lines(cell.text)
        if len(line) >= DISTINCTIVE
    }
    for unit in every:
        try:
            lab = read_notebook(unit.notebook("lab", at))
            own = sources.get(unit) or read_source(unit.source("lab", at), "lab")
        except (NotebookError, SourceError):
            continue
        given = "\n".join(marks.blank(cell.text) for cell in own.cells)
        there = "\n".join(_strings(lab))
        for line, source in secret.items():
            if line in there and line not in given:
                yield f"labs/{unit.slug}.ipynb holds a line of {_name(source.path)}: `{line}`."


def _setups(sources: dict[Unit, Source]) -> Iterator[str]:
    """Labs whose set-up cell is not the shortest one, alone or with lines after it (units with kernels import more)."""
    texts = {unit: next(cell.text for cell in source.cells if "setup" in cell.tags) for unit, source in sources.items()}
    first = min(texts, key=lambda unit: len(texts[unit]), default=None)
    for unit, text in texts.items():
        if not (text + "\n").startswith(texts[first] + "\n"):
            yield f"solutions/{unit.slug}.py has another set-up cell than solutions/{first.slug}.py."


def _orphans(at: Path) -> Iterator[str]:
    for folder, sources in (("notebooks", "notebooks"), ("labs", "solutions")):
        for path in sorted((at / folder).glob("*.ipynb")):
            if not (at / sources / f"{path.stem}.py").is_file():
                yield f"{_name(path)} has no source: there is no {sources}/{path.stem}.py."


def _text(outputs: list[dict]) -> str:
    """The plain text of outputs, as nbval compares it."""
    pieces = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join("".join(piece) for piece in pieces)


def _strings(value: Any) -> Iterator[str]:
    """Every text in a tree, pictures left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not key.startswith("image/"):
                yield key
                yield from _strings(inner)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"

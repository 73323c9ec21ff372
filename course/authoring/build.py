"""Building the notebooks: `course build` executes what changed, `course build --check` compares."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from course.authoring import files
from course.authoring.gate import check, digest, faults_of, kinds, shown
from course.authoring.percent import Source, SourceError
from course.authoring.places import Unit, root, units
from course.authoring.run import CellError, execute
from course.authoring.source import notebook, read_source


def build(
    these: list[Unit] | None = None,
    at: Path | None = None,
    *,
    only_check: bool = False,
    force: bool = False,
    tell: Callable[[str], None] = print,
) -> list[str]:
    """Build the lessons, solutions and labs of these units (all when None) that are not as their sources say.

    Every unit is tried, whatever happens to the others. A notebook is written whole, after its last cell ran; the
    notebooks and progress of a learner are never touched.

    only_check: build nothing, and return what `check` finds.
    force: build what is up to date as well.
    tell: gets a line for every notebook.
    Returns: one sentence for every fault; none when all is well.
    """
    at = at or root()
    if only_check:
        return check(these, at)
    faults: list[str] = []
    for unit in units(at) if these is None else these:
        for kind in kinds(unit, at):
            try:
                source = read_source(unit.source(kind, at), kind)
                if force or faults_of(unit, kind, source, at):
                    start = time.monotonic()
                    _build(unit, kind, source, at)
                    tell(f"{unit.number} {kind:8} built in {time.monotonic() - start:.1f} s")
                else:
                    tell(f"{unit.number} {kind:8} up to date")
            except SourceError as error:
                faults += [fault for fault in error.faults if fault not in faults]
                tell(f"{unit.number} {kind:8} not built: its source has faults")
            except CellError as error:
                place = source.at(source.cells[error.place].line)
                faults.append(f"{place}: the {kind}'s cell cannot be built: {error}")
                tell(f"{unit.number} {kind:8} not built: a cell failed")
    return faults


def _build(unit: Unit, kind: str, source: Source, at: Path) -> None:
    import nbformat

    built = notebook(source, kind)
    execute(built)
    for place, cell in enumerate(built.cells):
        if wrong := next(shown(cell, kind), None):
            raise CellError(place, wrong)
    nbformat.validate(built)
    built.metadata["course"]["outputs"] = digest(json.loads(nbformat.writes(built))["cells"])
    files.write(unit.notebook(kind, at), nbformat.writes(built) + "\n")

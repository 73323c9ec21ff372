"""A source text in py:percent format, read with jupytext into cells that know their lines."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course.authoring import marks


class SourceError(Exception):
    """What is wrong in a source: one sentence a fault, each with file and line, in `faults`."""

    def __init__(self, faults: list[str]):
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class Cell:
    kind: str  # "markdown" or "code"
    text: str
    line: int  # of its `# %%`
    tags: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def roles(self) -> list[tuple[str, str]]:
        return list(marks.roles(self.tags))


@dataclass(frozen=True)
class Source:
    path: Path
    unit: str  # "04"
    hash: str  # of the text
    cells: list[Cell]

    def at(self, line: int) -> str:
        return f"{self.path.parent.name}/{self.path.name}:{line}"


def cells_of(text: str, where: str) -> list[Cell]:
    """The cells of a text; `where` names its file in a sentence. Raises: SourceError."""
    import jupytext

    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines, 1) if re.match(r"# %%(\s|$)", line)]
    header = lines.index("# ---", 1) + 1 if lines[:1] == ["# ---"] and "# ---" in lines[1:] else 0
    first = next((number for number, line in enumerate(lines, 1) if number > header and line.strip()), None)
    if first is None or first not in starts:
        raise SourceError([f"{where}:{first or 1}: the first cell must begin with `# %%`."])
    try:
        read = jupytext.reads(text, fmt="py:percent").cells
    except Exception as error:  # jupytext raises many kinds
        raise SourceError([f"{where}:1: jupytext cannot read it: {error}."]) from None
    if len(read) != len(starts):
        raise SourceError([f"{where}:{starts[0]}: a line that begins with `# %%` stands inside a cell's text."])
    cells = []
    for line, cell in zip(starts, read, strict=True):
        metadata = {key: value for key, value in cell.metadata.items() if not key.startswith("lines_to_")}
        cells.append(Cell(cell.cell_type, cell.source, line, list(metadata.pop("tags", [])), metadata))
    return cells

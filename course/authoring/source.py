"""A notebook's source: read, checked, and turned into lesson, solution or lab.

A solution's source is the source of the lab as well. Cells get their ids from the unit and their place, exercise cells
from the exercise, so that two builds are equal to the byte.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from course.authoring import marks
from course.authoring.faults import faults_in
from course.authoring.percent import Source, SourceError, cells_of


def read_source(path: Path, kind: str) -> Source:
    """The source of a lesson (`kind` "lesson") or of a solution and lab (any other kind).

    Raises: SourceError with every fault of the file.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise SourceError([f"{where}:1: there is no such file."]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError([f"{where}:1: it cannot be read as UTF-8 text: {error}."]) from None
    if not re.fullmatch(r"\d\d_\w+", path.stem):
        raise SourceError([f"{where}:1: a source is named like 04_mixture_of_experts.py."])
    source = Source(path, path.stem[:2], hashlib.sha256(text.encode()).hexdigest(), cells_of(text, where))
    if faults := faults_in(source, kind):
        raise SourceError(faults)
    return source


def notebook(source: Source, kind: str) -> Any:
    """The notebook of a kind ("lesson", "solution" or "lab"), not yet executed (an nbformat 4.5 node)."""
    from nbformat import v4

    cells = []
    for place, cell in enumerate(source.cells, 1):
        plain = f"u{source.unit}-{'l' if kind == 'lesson' else 'x'}{place:02d}"
        make = v4.new_code_cell if cell.kind == "code" else v4.new_markdown_cell
        cells.append(
            make(
                marks.blank(cell.text) if kind == "lab" else cell.text,
                id=next((marks.cell_id(*role) for role in cell.roles), plain),
                metadata=cell.metadata | ({"tags": cell.tags} if cell.tags else {}),
            )
        )
    course = {
        "unit": source.unit,
        "kind": kind,
        "source": source.hash,
        "cells": {cell.id: marks.fingerprint(cell) for cell in cells},
    }
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return v4.new_notebook(
        cells=cells, metadata={"course": course, "kernelspec": kernel, "language_info": {"name": "python"}}
    )

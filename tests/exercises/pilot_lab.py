"""A lab of the pilot exercises, written as if it had been built: solution and lab under a root, and a learner's copy."""

import json
from pathlib import Path

from course.authoring.marks import blank
from course.checking.answer import source_of
from course.checking.judge import Verdict
from course.checking.result import Result
from course.exercises import every

PILOTS = Path(__file__).parents[1] / "pilot"
SLUG = "99_pilot"
SETUP = (
    "from course import check, mine\nimport math\nimport numpy as np\nimport torch\nimport torch.nn.functional as F\n"
)
SETUP += "from torch import Tensor\nimport triton\nimport triton.language as tl"


def cell(name: str, source: str, tags: list[str], outputs: list | None = None) -> dict:
    metadata = {"tags": tags} if tags else {}
    return {
        "cell_type": "code",
        "id": name,
        "metadata": metadata,
        "source": source,
        "outputs": outputs or [],
        "execution_count": 1,
    }


def solved(name: str) -> str:
    """The text of a right answer's cell, with the marks of its solution."""
    exercise = every()[name]
    function = exercise.alternatives[0] if exercise.kernel else exercise.reference
    source = source_of(function, exercise.entry)
    head, _, body = source.partition(f"def {exercise.entry}(")
    signature, _, body = body.partition(":\n")
    marked = f"    ### BEGIN SOLUTION\n{body.rstrip()}\n    ### END SOLUTION"
    return f"# exercise {name}\n{head}def {exercise.entry}({signature}:\n{marked}"


def checked(name: str) -> dict:
    e = every()[name]
    passed = Result(Verdict(e.id, e.title, e.points, "passed"))
    output = {
        "output_type": "execute_result",
        "execution_count": 1,
        "metadata": {},
        "data": {"text/plain": repr(passed), "text/html": passed._repr_html_()},
    }
    tags = [f"check:{name}", "nbval-check-output"]
    return cell(f"ex-{name.replace('.', '-')}-check", f'check("{name}", {e.entry})', tags, [output])


def notebook(ids: list[str], kind: str) -> dict:
    cells = [cell("u99-x01", SETUP, ["setup"])]
    for name in ids:
        text = solved(name)
        text = blank(text) if kind == "lab" else text
        cells += [cell(f"ex-{name.replace('.', '-')}-answer", text, [f"exercise:{name}"]), checked(name)]
    course = {"unit": "99", "kind": kind}
    return {"cells": cells, "metadata": {"course": course}, "nbformat": 4, "nbformat_minor": 5}


def write(path: Path, book: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(book if isinstance(book, str) else json.dumps(book))
    return path


class PilotLab:
    """A course of one lab, and its learner."""

    def __init__(self, folder: Path, ids: list[str]):
        self.home = folder / "workspace"
        for kind in ("solution", "lab"):
            write(folder / "root" / f"{kind}s" / f"{SLUG}.ipynb", notebook(ids, kind))
        self.path = self.home / "labs" / f"{SLUG}.ipynb"
        self.book = notebook(ids, "lab")

    def answer(self, name: str, text: str) -> None:
        next(c for c in self.book["cells"] if f"exercise:{name}" in c["metadata"].get("tags", []))["source"] = text

    def save(self) -> Path:
        return write(self.path, self.book)

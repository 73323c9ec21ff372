"""Submissions: which notebook is whose, and the answers it holds."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from course.authoring.answers import NotebookError, find_answers, read_notebook
from course.grading import GradingError

LONGEST = 80  # characters of a student's name
LONGEST_CELL = 100_000  # characters of a code cell, or of a Python file: what is parsed here must stay small
NOTEBOOKS, ENTRIES = (".ipynb",), (".ipynb", ".py")  # endings that are taken for a lab, and for one exercise
KINDS = {NOTEBOOKS: "notebook (.ipynb)", ENTRIES: "notebook (.ipynb) or Python file (.py)"}


@dataclass(frozen=True)
class Submission:
    """One student's file. `fault`: one sentence when there is none to read."""

    student: str
    path: Path
    notes: tuple[str, ...] = ()
    fault: str | None = None


@dataclass(frozen=True)
class Answers:
    """What a submission answers: sources by exercise id, and for those that cannot be taken, one sentence."""

    sources: dict[str, str]
    faults: dict[str, str]
    notes: tuple[str, ...]


def submissions(named: Sequence[Path], lab: str, kinds: tuple[str, ...] = NOTEBOOKS) -> list[Submission]:
    """The submissions among the named files and folders, a name for each that no other has.

    A notebook's student is the file's name, or its folder's when the file still has the name of the lab. In a named
    folder, each folder is one student's.

    lab: file name of the lab without its ending, such as "04_mixture_of_experts". kinds: NOTEBOOKS or ENTRIES.
    Raises: GradingError when a name is not there, or a folder holds nothing.
    """
    found: list[tuple[str, Path, str | None]] = []
    for path in named:
        if not path.exists() and not path.is_symlink():
            raise GradingError(f"There is no file or folder {str(path)!r}.")
        here = list(_in_folder(path, lab, kinds)) if path.is_dir() else [_one(path, lab, kinds)]
        if not here:
            raise GradingError(f"The folder {str(path)!r} holds no {KINDS[kinds]}.")
        found += here
    return _distinct(found)


def answers(submission: Submission, ids: Sequence[str]) -> Answers:
    """Read the answer cells. Raises: NotebookError, one sentence."""
    if submission.fault:
        raise NotebookError(submission.fault)
    notebook = read_notebook(submission.path)
    if any(len(cell["source"]) > LONGEST_CELL for cell in notebook["cells"] if cell["cell_type"] == "code"):
        raise NotebookError(f"A code cell of {submission.path.name} has more than {LONGEST_CELL:,} characters.")
    sources, faults, notes = find_answers(notebook, ids)
    if not sources and not faults and not notes:
        notes = ["It holds no answer cell of this lab."]
    return Answers(sources, faults, tuple(notes))


def answer_to(submission: Submission, exercise: str) -> str:
    """The answer to one exercise: of a notebook its cell, of a Python file all of it. Raises: NotebookError, one sentence."""
    name = submission.path.name
    if not submission.fault and submission.path.suffix == ".py":
        try:
            text = submission.path.read_bytes()[: 4 * LONGEST_CELL + 1].decode("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise NotebookError(f"{name} cannot be read as UTF-8 text.") from None
        if len(text) > LONGEST_CELL:
            raise NotebookError(f"{name} has more than {LONGEST_CELL:,} characters.")
        return text.replace("\r\n", "\n")
    taken = answers(submission, [exercise])
    if exercise in taken.sources:
        return taken.sources[exercise]
    reasons = [taken.faults[exercise]] if exercise in taken.faults else taken.notes
    raise NotebookError(" ".join(reasons) or f"{name} holds no answer to {exercise}.")


def safe(name: str) -> str:
    """A student's name as the name of a folder: letters, digits and ` . _ - @ +`, starting with a letter or digit."""
    name = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    kept = "".join(c if c.isalnum() or c in " ._-@+" else "_" for c in name)
    kept = kept.lstrip(" ._-@+").encode()[: 2 * LONGEST].decode(errors="ignore")[:LONGEST].rstrip(" .")
    return kept or "student"


def _in_folder(folder: Path, lab: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, Path, str | None]]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield _of_student(path, lab, kinds)
        elif path.suffix in kinds:
            yield _one(path, lab, kinds)


def _one(path: Path, lab: str, kinds: tuple[str, ...]) -> tuple[str, Path, str | None]:
    path = path.absolute()
    student = path.parent.name if path.stem == lab else path.stem
    if path.is_symlink() or not path.is_file():
        return student, path, f"{path.name!r} is a link or no plain file, and is not read."
    return student, path, None if path.suffix in kinds else f"{path.name!r} is not a {KINDS[kinds]}."


def _of_student(folder: Path, lab: str, kinds: tuple[str, ...]) -> tuple[str, Path, str | None]:
    """The one file in a student's folder, or the one that has the lab's name."""
    every = (path for path in sorted(folder.rglob("*")) if path.suffix in kinds)
    inside = [path for path in every if ".ipynb_checkpoints" not in path.parts]
    chosen = [path for path in inside if path.stem == lab] if len(inside) > 1 else inside
    if len(chosen) == 1:
        return folder.name, chosen[0], _one(chosen[0], lab, kinds)[2]
    many = "notebooks" if kinds == NOTEBOOKS else "files"
    what = f"holds no {KINDS[kinds]}" if not inside else f"holds {len(inside)} {many}; keep {lab}.ipynb alone"
    return folder.name, folder, f"The folder {folder.name!r} {what}."


def _distinct(found: list[tuple[str, Path, str | None]]) -> list[Submission]:
    taken, distinct = {"gradebook.csv"}, []
    for name, path, fault in found:
        student, number = safe(name), 1
        notes = [] if student == name else [f"The name {name!r} is written {student!r} here."]
        while student.casefold() in taken:
            number += 1
            student = f"{safe(name)}-{number}"
        if number > 1 and safe(name).casefold() != "gradebook.csv":
            notes.append(f"Another submission has the name {safe(name)!r}, so this one is {student!r}.")
        taken.add(student.casefold())
        distinct.append(Submission(student, path, tuple(notes), fault))
    return distinct

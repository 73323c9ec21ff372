"""The learner's workspace: copies of lessons and labs that are theirs to change, kept up to date with the course."""

import json
from collections.abc import Callable
from pathlib import Path

from course.authoring import files, marks
from course.authoring.answers import answer_places
from course.authoring.merge import merge
from course.authoring.places import FOLDERS, MARKER, Unit, is_clone, root, workspace
from course.authoring.reading import Notebook, NotebookError, read_notebook

GUIDES = "README.md", "AGENTS.md"  # of labs/, copied beside the learner's labs


class WorkspaceError(Exception):
    """Why a unit cannot be opened: one sentence."""


def open_unit(unit: Unit, tell: Callable[[str], None] = print) -> Path:
    """Put lesson and lab of a unit into the workspace, or bring the copies there up to date.

    A copy of the same release is left alone, unless it has lost an answer cell or a check. A copy of another release is
    merged, and what it was before is kept in `.backup/`. A copy that cannot be read is moved aside.

    tell: gets a sentence about each copy that was merged or moved aside.
    Returns: the learner's lab. The lesson has the same name in the workspace's `notebooks/`.
    Raises: WorkspaceError when the unit is not built, or the workspace cannot be written.
    """
    at, home = root(), workspace()
    if not unit.notebook("lab", at).is_file():
        raise WorkspaceError(f"Lab {unit.number} is not built: run `course build {unit.number}`.")
    if is_clone(home):
        raise WorkspaceError(f"{home} holds a copy of the course itself: set COURSE_HOME to another folder.")
    try:
        if not (home / MARKER).exists():
            files.write(home / MARKER, "This folder is a workspace of the course MoE to Metal.\n")
        for kind in ("lesson", "lab"):
            if unit.notebook(kind, at).is_file():
                _update(unit.notebook(kind, home), unit.notebook(kind, at), home, tell)
        for guide in GUIDES:
            _copy(at / FOLDERS["lab"] / guide, home / FOLDERS["lab"] / guide)
    except OSError as error:
        raise WorkspaceError(f"The workspace {home} cannot be written: {error.strerror}.") from None
    return unit.notebook("lab", home)


def _update(mine: Path, released: Path, home: Path, tell: Callable[[str], None]) -> None:
    name = f"{mine.parent.name}/{mine.name}"
    try:
        release = read_notebook(released)
    except NotebookError as error:
        raise WorkspaceError(f"The course's own {name} is damaged: {error}") from None
    if mine.exists():
        try:
            copy = read_notebook(mine)
        except NotebookError as error:
            aside = files.free_name(mine, "unreadable-")
            mine.rename(aside)
            tell(f"{error} It is now {aside.name}, and {name} is a fresh copy.")
        else:
            same = _same_release(copy, release)
            if not same or _lacks_a_cell(copy, release):
                backup = files.free_name(home / ".backup" / name)
                files.write(backup, mine.read_bytes())
                files.write(mine, dump(merge(copy, release)))
                tell(
                    f"{name} {'has its missing cells again' if same else 'follows the new release'}: your answers and "
                    f"the cells you added are kept. Your copy as it was, with any other change, is {backup.relative_to(home)}."
                )
            return
    files.write(mine, released.read_bytes())


def dump(notebook: Notebook) -> str:
    """A notebook as the text of its file."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _same_release(copy: Notebook, release: Notebook) -> bool:
    keys = "unit", "kind", "source"
    return [marks.about(copy).get(key) for key in keys] == [marks.about(release).get(key) for key in keys]


def _lacks_a_cell(copy: Notebook, release: Notebook) -> bool:
    """Whether an exercise's answer cell or check is gone from a learner's copy."""
    roles = {marks.role_of(cell) for cell in copy["cells"]}
    wanted = {role for role in map(marks.role_of, release["cells"]) if role} - roles
    return any(kind == "check" or not answer_places(copy["cells"], name) for kind, name in wanted)


def _copy(source: Path, target: Path) -> None:
    if source.is_file() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
        files.write(target, source.read_bytes())

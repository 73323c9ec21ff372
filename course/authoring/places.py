"""Where the course's notebooks are, and where a learner's copies and progress are."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
MARKER = ".moe-to-metal"  # a file in the root of every workspace
FOLDERS = {"lesson": "notebooks", "solution": "solutions", "lab": "labs"}


class UnknownUnit(Exception):
    """There is no such unit: one sentence."""


@dataclass(frozen=True)
class Unit:
    number: str  # "04"
    slug: str  # "04_mixture_of_experts"
    title: str  # "Mixture of experts"

    def notebook(self, kind: str, root: Path) -> Path:
        """The unit's notebook of a kind ("lesson", "lab" or "solution") under a root or a workspace."""
        return root / FOLDERS[kind] / f"{self.slug}.ipynb"

    def source(self, kind: str, root: Path) -> Path:
        """The text that a notebook is built from. Lab and solution share one."""
        folder = "notebooks" if kind == "lesson" else "solutions"
        return root / folder / f"{self.slug}.py"


def is_clone(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "solutions").is_dir()


def root() -> Path:
    """The folder of notebooks/, labs/ and solutions/: COURSE_ROOT, else the clone, else the installed package's data."""
    if told := os.environ.get("COURSE_ROOT"):
        return Path(told).expanduser().absolute()
    return PACKAGE.parent if is_clone(PACKAGE.parent) else PACKAGE / "_data"


def home() -> Path | None:
    """Where a running notebook or command records progress, or None where nothing is recorded.

    COURSE_HOME when it is set, else the nearest folder upwards that holds a workspace's marker.
    """
    if told := os.environ.get("COURSE_HOME"):
        return Path(told).expanduser().absolute()
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None
    return next((folder for folder in [here, *here.parents] if (folder / MARKER).is_file()), None)


def workspace() -> Path:
    """Where a command puts a learner's copies: `home`, else `workspace/` in a clone, else `~/moe-to-metal`."""
    if found := home():
        return found
    return PACKAGE.parent / "workspace" if is_clone(PACKAGE.parent) else Path.home() / "moe-to-metal"


def units(at: Path | None = None) -> list[Unit]:
    """The units that stand, in order: those with a solution, as source or built."""
    at = at or root()
    found = {path.stem for path in (at / "solutions").glob("[0-9][0-9]_*") if path.suffix in (".py", ".ipynb")}
    return [Unit(slug[:2], slug, _title(at, slug)) for slug in sorted(found)]


def unit(name: str, at: Path | None = None) -> Unit:
    """The unit called "04", "4" or "04_mixture_of_experts". Raises: UnknownUnit, naming those that stand."""
    standing = units(at)
    for known in standing:
        if name in (known.number, known.slug, known.number.lstrip("0")):
            return known
    known = ", ".join(each.number for each in standing) or "none yet"
    raise UnknownUnit(f"There is no unit {name}; there is {known}.")


def _title(at: Path, slug: str) -> str:
    """The first heading of the lesson, else of the solution, without its number."""
    for folder in ("notebooks", "solutions"):
        for suffix, heading in ((".py", r"^# # (.+)$"), (".ipynb", r'^\s*"# ((?:[^"\\]|\\.)+)"')):
            path = at / folder / (slug + suffix)
            if path.is_file() and (found := re.search(heading, path.read_text("utf-8", "replace"), re.MULTILINE)):
                text = found[1] if suffix == ".py" else json.loads(f'"{found[1]}"')
                return re.sub(r"^((unit|lesson|lab)\s+)?\d\d\b[\s:.·–—-]*", "", text.strip(), flags=re.IGNORECASE)
    return slug[3:].replace("_", " ").capitalize()

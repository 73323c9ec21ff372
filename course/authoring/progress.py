"""What a learner has passed, kept in the workspace: `progress.json`, and each passed answer in `answers/04.3.py`.

Every change happens under a lock that ends with its process, and replaces whole files. So a notebook and a command may
write at once, and a kill at any moment leaves what was there before or after.
"""

import contextlib
import fcntl
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from course.authoring import files

Records = dict[str, dict[str, Any]]


class ProgressError(Exception):
    """Why progress could not be exported or reset: one sentence."""


@dataclass(frozen=True)
class Progress:
    passed: bool = False
    first_passed: str | None = None  # a date, 2026-03-01
    attempts: int = 0
    hints: int = 0  # taken


KINDS = {"passed": bool, "first_passed": str | None, "attempts": int, "hints": int}


def load(home: Path) -> dict[str, Progress]:
    """Progress by exercise id. What cannot be read is moved aside, and rebuilt from the kept answers."""
    try:
        records = _read(home)
    except ValueError:
        records = _change(home, lambda records: None)
    return {name: Progress(**{key: entry[key] for key in KINDS}) for name, entry in sorted(records.items())}


def record(home: Path, exercise: str, passed: bool, source: str) -> None:
    """Count an attempt; keep the answer's text when it passed. What has passed once stays passed."""

    def change(records: Records) -> None:
        entry = records.setdefault(exercise, asdict(Progress()))
        entry["attempts"] += 1
        if passed:
            entry["first_passed"] = entry["first_passed"] or date.today().isoformat()
            entry["passed"] = True

    _change(home, change, {_answer(home, exercise): source} if passed else {})


def take_hint(home: Path, exercise: str, of: int = 3) -> int:
    """Count one more hint and return which it is, from 1; the last one again when all `of` were taken."""

    def change(records: Records) -> None:
        entry = records.setdefault(exercise, asdict(Progress()))
        entry["hints"] = min(entry["hints"] + 1, of)

    return _change(home, change)[exercise]["hints"]


def kept_answer(home: Path, exercise: str) -> str | None:
    """The text of the learner's last answer that passed, or None."""
    try:
        return _answer(home, exercise).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def export(home: Path, path: Path) -> Path:
    """Write progress and kept answers to one JSON file (a folder gets `moe-to-metal-progress.json`). Returns the file.

    Raises: ProgressError when it cannot be written.
    """
    path = path / "moe-to-metal-progress.json" if path.is_dir() else path
    report = {name: asdict(entry) | {"answer": kept_answer(home, name)} for name, entry in load(home).items()}
    try:
        files.write(path, json.dumps({"exercises": report}, indent=1) + "\n")
    except OSError as error:
        raise ProgressError(f"{path} cannot be written: {error.strerror}.") from None
    return path


def reset(home: Path) -> Path | None:
    """Begin anew, and keep what was there. Returns: the folder it was moved to, or None when there was nothing.

    Raises: ProgressError when it cannot be moved.
    """
    if not home.is_dir():
        return None
    try:
        with _locked(home):
            there = [path for path in (home / "progress.json", home / "answers") if path.exists()]
            if not there:
                return None
            aside = files.free_name(home / ".backup" / "progress")
            aside.mkdir(parents=True)
            for path in there:
                shutil.move(path, aside / path.name)
    except OSError as error:
        raise ProgressError(f"Progress cannot be moved out of {home}: {error.strerror}.") from None
    return aside


def _change(home: Path, change: Callable[[Records], None], answers: dict[Path, str] | None = None) -> Records:
    """Read, change and write under the lock, kept answers first. Where the folder cannot be written, say so and go on."""
    records: Records = {}
    try:
        with _locked(home):
            try:
                records = _read(home)
            except ValueError as error:
                records = _rebuilt(home, str(error))
            change(records)
            for path, text in (answers or {}).items():
                files.sweep(path)
                files.write(path, text)
            files.sweep(home / "progress.json")
            files.write(home / "progress.json", json.dumps({"exercises": records}, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        print(f"Progress is not recorded: {home} cannot be written ({error.strerror}).", file=sys.stderr)
        records = {}
        change(records)
    return records


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with open(home / ".progress.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(home: Path) -> Records:
    """The records on disk, none where there is no file. Raises: ValueError when the file is not what was written."""
    try:
        content = json.loads((home / "progress.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from None
    records = content.get("exercises") if isinstance(content, dict) else None
    if not isinstance(records, dict):
        raise ValueError("it holds no exercises")
    for name, entry in records.items():
        if not re.fullmatch(r"\d\d\.\d+", name) or not isinstance(entry, dict):
            raise ValueError(f"{name!r} is no exercise")
        for key, value in (asdict(Progress()) | entry).items():
            if not isinstance(value, KINDS.get(key, object)):
                raise ValueError(f"the entry of {name} is damaged")
    return {name: asdict(Progress()) | entry for name, entry in records.items()}


def _rebuilt(home: Path, why: str) -> Records:
    """Move a damaged file aside, and say of each kept answer that it passed, on the day it was written."""
    path = home / "progress.json"
    aside = files.free_name(path, "damaged-")
    path.rename(aside)
    print(
        f"progress.json could not be read ({why}): it is now {aside.name}, and what passed was restored.",
        file=sys.stderr,
    )
    return {
        answer.stem: asdict(Progress(True, date.fromtimestamp(answer.stat().st_mtime).isoformat(), attempts=1))
        for answer in sorted((home / "answers").glob("[0-9][0-9].*.py"))
        if re.fullmatch(r"\d\d\.\d+", answer.stem)
    }


def _answer(home: Path, exercise: str) -> Path:
    if not re.fullmatch(r"\d\d\.\d+", exercise):
        raise ValueError(f"{exercise!r} is not the id of an exercise")
    return home / "answers" / f"{exercise}.py"

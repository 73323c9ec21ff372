"""Running a notebook under nbval in a process of its own, away from the user's pytest, IPython and Jupyter settings."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from course.authoring.answers import Notebook
from course.checking.judge import Case, Verdict

NBVAL = ["--nbval-lax", "--nbval-current-env", "-p", "nbval.plugin", "-p", "course.exercises.nbval_plugin"]
STOPPING = 10.0  # seconds that nbval gets to stop its kernel after Ctrl-C


class CheckError(Exception):
    """Why a lab cannot be checked: one sentence."""


def run_lab(notebook: Notebook, home: Path) -> tuple[list[dict[str, Any]], dict[str, Verdict]]:
    """Run a notebook, recording in the workspace `home`.

    Returns: what each cell did, as `nbval_plugin` writes it; and what the checks said, by exercise id.
    Raises: CheckError when nbval itself fails.
    """
    with tempfile.TemporaryDirectory(prefix="course-check-") as folder:
        here = Path(folder)
        (here / "lab.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        (here / "pytest.ini").write_text("[pytest]\n")
        cells, verdicts, log = here / "cells", here / "verdicts", here / "log"
        told = {"COURSE_CELLS": cells, "COURSE_VERDICTS": verdicts, "COURSE_HOME": home}
        environment = os.environ | {name: str(path) for name, path in told.items()}
        environment |= {
            "IPYTHONDIR": str(here / "ipython"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
        }
        command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "-p", "no:cacheprovider", *NBVAL, "lab.ipynb"]
        with log.open("w") as out:
            process = subprocess.Popen(
                command,
                cwd=here,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            _follow(process, cells, sum(cell["cell_type"] == "code" for cell in notebook["cells"]))
        if process.returncode not in (0, 1):
            said = log.read_text(errors="replace").split("\n")
            raise CheckError(f"nbval could not run: {next(filter(None, reversed(said)), 'it said nothing')}")
        return _lines(cells), {verdict.id: verdict for verdict in _verdicts(_lines(verdicts))}


def _follow(process: subprocess.Popen, cells: Path, total: int) -> None:
    """Show how many cells have run until the process ends. Ctrl-C is passed on, so that the kernel is stopped too."""
    columns = TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"), TimeElapsedColumn()
    console = Console(stderr=True)
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=total)
            while process.poll() is None:
                progress.update(task, completed=len(_lines(cells)))
                time.sleep(0.1)
    except BaseException:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that is still being written, each a JSON object."""
    whole = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0] if path.exists() else ""
    lines = []
    for line in whole.splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def _verdicts(lines: list[dict[str, Any]]) -> Iterator[Verdict]:
    for line in lines:
        with contextlib.suppress(TypeError, KeyError):  # a line that an answer wrote
            yield Verdict(**line | {"cases": tuple(Case(**case) for case in line["cases"])})

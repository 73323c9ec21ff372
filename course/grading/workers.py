"""Workers for a whole grading: each holds one answer, is used once, and was started ahead while others were compared."""

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from course.authoring.places import PACKAGE
from course.checking.exercise import Exercise
from course.checking.launch import Worker, WorkerEnded, fresh
from course.checking.worker import ENGINE, KERNEL_ENGINE
from course.grading import GradingError
from course.grading.sandbox import ON_GPU, STAGE, WORK, Limits, environment, interpreter, isolated

STARTING = 60.0  # seconds until a worker has imported torch
COMPILING = 60.0  # seconds for the kernels of one answer

Kind = tuple[tuple[str, ...], bool, bool, bool]  # modules given, kernel, interprets, has a GPU


class Workers:
    """Starts workers, `ahead` of them before they are asked for. Closing it ends those that wait."""

    def __init__(self, isolation: bool = True, limits: Limits | None = None, ahead: int | None = None):
        self.isolation, self.limits = isolation, limits or Limits()
        self.ahead = min(os.cpu_count() or 1, 4) if ahead is None else ahead
        self.folder = tempfile.TemporaryDirectory(prefix="grading-")
        self.waiting: dict[Kind, deque[Worker]] = {}

    def start(self, exercise: Exercise, interpret: bool = True, gpu: bool = False) -> Worker:
        """A worker that is ready for one answer. Raises: GradingError when it does not come up."""
        kind = exercise.gives, exercise.kernel, interpret, gpu
        waiting = self.waiting.setdefault(kind, deque())
        while len(waiting) <= (self.ahead if interpret else 0):
            waiting.append(self._fresh(kind))
        worker = waiting.popleft()
        try:
            worker.request({"op": "hello"}, STARTING)
        except WorkerEnded as error:
            said = worker.printed().strip().splitlines()[-1:]
            worker.close()
            raise GradingError(f"No worker could be started: {' '.join([str(error), *said])}") from None
        return worker

    def compile(self, exercise: Exercise, code: int = 0) -> Callable[[str, list], list[dict[str, Any]]]:
        """What compiles the launches of an answer for sm_90, in a worker of its own that does not interpret.

        code: of so many launches, from the first, the machine code as well.
        """

        def compiled(text: str, launches: list) -> list[dict[str, Any]]:
            load = {"op": "load", "source": text, "prelude": "", "entry": exercise.entry, "earlier": {}}
            load |= {"gives": list(exercise.gives), "forbids": [], "kernel": True, "tags": []}
            with self.start(exercise, interpret=False) as worker:
                try:
                    worker.request(load, COMPILING)
                    reply = worker.request({"op": "compile", "launches": launches, "code": code}, COMPILING)
                except WorkerEnded as error:
                    return [{"error": str(error)}]
            found = reply["value"] if reply["status"] == "value" else None
            if type(found) is not list or len(found) != len(launches) or not all(type(each) is dict for each in found):
                return [{"error": f"The kernel was not compiled. {reply['error'].get('message', '')}"}]
            return found

        return compiled

    def _fresh(self, kind: Kind) -> Worker:
        gives, kernel, interpret, gpu = kind
        stage = self._stage(gives, kernel)
        limits = asdict(self.limits) | (ON_GPU if gpu else {})
        limits.pop("case")
        if self.isolation:
            return fresh(isolated(_python(WORK, limits), stage, gpu), environment(STAGE, WORK, interpret))
        limits.pop("processes")
        work = tempfile.TemporaryDirectory(prefix="answer-")
        return fresh(_python(work.name, limits), environment(str(stage), work.name, interpret), work)

    def _stage(self, gives: tuple[str, ...], kernel: bool) -> Path:
        """The folder with those modules of the course that a worker may import."""
        folder = Path(self.folder.name) / "-".join(["stage", *gives, "kernel" * kernel])
        if not folder.exists():
            for module in [*ENGINE, *gives, *(KERNEL_ENGINE if kernel else ())]:
                _copy(module, folder, whole=module in gives)
            for part in [folder, *folder.rglob("*")]:
                part.chmod(0o755 if part.is_dir() else 0o644)
        return folder

    def close(self) -> None:
        for waiting in self.waiting.values():
            while waiting:
                waiting.popleft().close()
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _python(folder: str, limits: dict[str, int | None]) -> list[str]:
    return [str(interpreter()), "-s", "-S", "-m", "course.checking.worker", folder, json.dumps(limits)]


def _file(module: str) -> Path:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _copy(module: str, folder: Path, whole: bool) -> None:
    """Copy a module, or a whole package; packages on the way to it are there, and empty."""
    source = _file(module)
    target = folder / source.relative_to(PACKAGE.parent)
    if not source.is_file():
        raise GradingError(f"There is no module {module}, which an exercise gives to its answers.")
    target.parent.mkdir(parents=True, exist_ok=True)
    for package in [target.parent, *target.parent.parents]:
        if package.is_relative_to(folder / "course"):
            (package / "__init__.py").touch()
    shutil.copyfile(source, target)
    if whole and source.name == "__init__.py":
        shutil.copytree(source.parent, target.parent, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))

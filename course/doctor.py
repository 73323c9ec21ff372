"""`course doctor`: what this machine has for the course, and the fix for what is missing."""

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import course
from course.authoring import places

PYTHONS = (3, 11), (3, 13)
TORCH = "2.11", "2.13.0"  # the releases that the course is meant for
TRITON = "3.6", "3.7.1"
ROOM = 2.0  # GB that the workspace and the caches may take


@dataclass(frozen=True)
class Finding:
    state: str  # "ok", "warn" or "fail"
    part: str
    says: str
    fix: str = ""


def doctor_command() -> int:
    """Print a line for each part. Returns: 1 when the course cannot run, else 0."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    styles = {"ok": "green", "warn": "dark_orange", "fail": "red"}
    found = list(findings())
    for each in found:
        table.add_row(
            Text(each.state, styles[each.state]), each.part, Text(f"{each.says} {each.fix}".strip(), overflow="fold")
        )
    Console(highlight=False).print(table)
    return int(any(each.state == "fail" for each in found))


def findings() -> Iterator[Finding]:
    for look in LOOKS:
        try:
            yield look()
        except Exception as error:
            name = look.__name__.strip("_").replace("_", " ")
            yield Finding("fail", name, f"{type(error).__name__}: {error}", "Install the course again: make install.")


def _python() -> Finding:
    found = sys.version_info[:2]
    says = f"{sys.version.split()[0]} at {sys.executable}."
    if PYTHONS[0] <= found <= PYTHONS[1]:
        return Finding("ok", "Python", says)
    return Finding(
        "fail", "Python", says, "The course runs on 3.11 to 3.13: make clean, then make install PYTHON=python3.12."
    )


def _torch() -> Finding:
    import torch

    return _in_range("PyTorch", torch.__version__, TORCH, "pip install torch==2.13.0")


def _triton() -> Finding:
    if importlib.util.find_spec("triton") is None:
        says = f"not installed, as it has no wheel for {sys.platform}." if sys.platform != "linux" else "not installed."
        return Finding(
            "warn", "Triton", says, "Units 09 to 14 need it; the others run. On Linux: pip install triton==3.7.1."
        )
    return _in_range("Triton", version("triton"), TRITON, "pip install triton==3.7.1")


def _in_range(part: str, found: str, meant: tuple[str, str], fix: str) -> Finding:
    says = f"{found} (the course's range: {meant[0]} to {meant[1]})."
    if _number(meant[0]) <= _number(found) <= _number(meant[1]):
        return Finding("ok", part, says)
    return Finding("warn", part, says, f"Should something fail: {fix}.")


def _number(release: str) -> tuple[int, ...]:
    """2.13.0+cpu as (2, 13, 0), so that releases compare."""
    return tuple(map(int, re.findall(r"\d+", release.split("+")[0])[:3]))


def _gpu() -> Finding:
    if not course.has_gpu():
        return Finding("ok", "GPU", "none; nothing in the course needs one.")
    import torch

    if not torch.cuda.is_available():
        return Finding(
            "warn",
            "GPU",
            "an NVIDIA driver answers, and PyTorch cannot use it.",
            "Set CUDA_VISIBLE_DEVICES= and TRITON_INTERPRET=1 to run on the CPU, or install PyTorch's CUDA build.",
        )
    major, minor = torch.cuda.get_device_capability()
    return Finding("ok", "GPU", f"{torch.cuda.get_device_name()}, sm_{major}{minor}.")


def _kernels() -> Finding:
    mode = os.environ.get("TRITON_INTERPRET")
    if mode == "1":
        return Finding("ok", "kernels", "run in Triton's interpreter, on the CPU.")
    if course.has_gpu():
        return Finding("ok", "kernels", "run on the GPU; checks run them in the interpreter.")
    return Finding("fail", "kernels", f"TRITON_INTERPRET is {mode!r}, and there is no GPU.", "Unset TRITON_INTERPRET.")


def _sandbox() -> Finding:
    from course.grading.sandbox import level

    letter, says, fix = level()
    return Finding("ok" if letter == "A" else "warn", "grading", f"Level {letter}. {says}", fix)


def _jupyter() -> Finding:
    try:
        found = version("jupyterlab")
    except PackageNotFoundError:
        return Finding("fail", "JupyterLab", "not installed.", "pip install jupyterlab.")
    return Finding("ok", "JupyterLab", f"{found}, and a kernel that is this Python.")


def _workspace() -> Finding:
    home = places.workspace()
    try:
        with tempfile.TemporaryFile(dir=_existing(home)):
            pass
    except OSError as error:
        fix = "Set COURSE_HOME to a folder that can."
        return Finding("fail", "workspace", f"{home} cannot be written ({error.strerror}).", fix)
    return Finding("ok", "workspace", f"{home}{'' if home.exists() else ', made when you open a unit'}.")


def _existing(folder: Path) -> Path:
    return next(each for each in [folder, *folder.parents] if each.exists())


def _disk() -> Finding:
    there = _existing(places.workspace())
    free = shutil.disk_usage(there).free / 1e9
    if free < ROOM:
        return Finding("warn", "disk", f"{free:.1f} GB free at {there}.", f"Make room: {ROOM:.0f} GB are enough.")
    return Finding("ok", "disk", f"{free:.0f} GB free.")


def _units() -> Finding:
    standing = places.units()
    if not standing:
        return Finding("fail", "units", f"none in {places.root()}.", "Install the course again.")
    return Finding("ok", "units", f"{', '.join(unit.number for unit in standing)}, in {places.root()}.")


LOOKS: list[Callable[[], Finding]] = [
    _python,
    _torch,
    _triton,
    _gpu,
    _kernels,
    _jupyter,
    _workspace,
    _disk,
    _units,
    _sandbox,
]

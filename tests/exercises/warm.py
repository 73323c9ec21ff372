"""What the gates keep from one judgement to the next, where a judge by itself would do it again each time:

a process that compiles for sm_90, and the values of wrong kernels on the same inputs.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import triton.experimental.gluon  # noqa: F401  (the interpreter's first launch needs it: once here, not in each fork)

from course.checking import judge
from course.checking.exercise import Exercise, Inputs, Tree
from course.checking.wire import pack

LOOP = """
import json, sys
from course.kernels.compiler import compile_here
for line in sys.stdin:
    path, launches = json.loads(line)
    print(json.dumps([compile_here(path, launch) for launch in launches]), flush=True)
"""


@cache
def _compiler() -> subprocess.Popen:
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", LOOP]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    atexit.register(process.kill)
    return process


def compiled(text: str, launches: list) -> list[dict[str, Any]]:
    """`course.kernels.compile_texts`, by one process for all of them and without its cache."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(text)
        process = _compiler()
        process.stdin.write(json.dumps([str(path), launches]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


_values = judge.values_of
_known: dict[tuple[Any, ...], list[Tree]] = {}


def values_of(exercise: Exercise, function: Callable[..., Tree], drawn: Iterable[Inputs], earlier) -> Iterable[Tree]:
    """The judge's; of kernels all cases at once, and remembered."""
    if not exercise.kernel:
        return _values(exercise, function, drawn, earlier)
    drawn = list(drawn)
    key = exercise.id, function, *map(pack, drawn)
    if key not in _known:
        _known[key] = list(_values(exercise, function, drawn, earlier))
    return _known[key]

"""A pytest plugin for `course check`: it tells, cell by cell, what nbval found, and does not wait for a kernel that ended.

nbval by itself waits for the whole time-out of a cell when its kernel has died, and gives every cell the same time. It
is loaded with `-p course.exercises.nbval_plugin` and appends a JSON line for each cell to the file COURSE_CELLS names:
role ("exercise", "check" or null), id, passed, ended ("died", "late" or null) and error (its last line).
"""

import json
import os
import re
import time
from pathlib import Path
from queue import Empty

import pytest
from nbval.kernel import RunningKernel

from course.authoring.marks import role_of

DEFINING = 10.0  # seconds for an answer cell: it defines functions, and runs none
RUNNING = 120.0  # seconds for every other cell
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class KernelEnded(Exception):
    """The kernel died while it ran a cell."""


_wait = RunningKernel.await_reply


def _wait_while_alive(self, msg_id, timeout=None):
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _wait(self, msg_id, timeout=min(1.0, timeout))
        except Empty:
            if not self.is_alive():
                raise KernelEnded from None
            if time.monotonic() > deadline:
                raise


RunningKernel.await_reply = _wait_while_alive


def pytest_runtest_setup(item):
    role = role_of(item.cell)
    item.config.option.nbval_cell_timeout = DEFINING if role and role[0] == "exercise" else RUNNING


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        role, name = role_of(item.cell) or (None, None)
        error = call.excinfo.value if call.excinfo else None
        line = {"role": role, "id": name, "passed": error is None, "ended": _ended(error), "error": _last_line(error)}
        with Path(os.environ["COURSE_CELLS"]).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
    return report


def _ended(error: BaseException | None) -> str | None:
    if isinstance(error, KernelEnded) or "Kernel dead" in str(error):
        return "died"
    return "late" if str(error).startswith("Timeout of") else None


def _last_line(error: BaseException | None) -> str:
    told = COLOUR.sub("", str(getattr(error, "inner_traceback", None) or error or "")).strip()
    return told.splitlines()[-1][:300] if told else ""

"""`make test`: the stages one after another, their times, and pytest's closing line at the end.

Each stage runs whatever the one before it said; the exit code is 1 when any of them failed. Notebooks run one at a time.
pytest runs as two processes of one thread each, which share the tests: much of them is waiting for other processes.
Nothing is recorded: progress goes to a folder that is thrown away.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
CHOSEN = {"all": "not deep", "fast": "not deep and not slow and not browser", "deep": "deep"}
HALF = ["tests/exercises", "tests/browser"]  # take about as long as all the others
PYTEST = ["pytest", "--durations=5", "--durations-min=5"]
NBVAL = [
    *("pytest", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-q", "--no-header", "-rfE"),
    *("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120", "--continue-on-collection-errors"),
]


def stages(kind: str) -> dict[str, list[list[str]]]:
    """What a kind of run does ("all", "fast", "deep"), in order: by name, commands that run side by side."""
    if kind == "deep":
        return {"pytest": [[*PYTEST, "-m", CHOSEN[kind]]]}
    books = [
        path for folder in ("notebooks", "labs", "solutions") for path in (ROOT / folder).glob("[0-9][0-9]_*.ipynb")
    ]
    found = {
        "ruff check": [["ruff", "check", "."]],
        "ruff format": [["ruff", "format", "--check", "."]],
        "course build --check": [["course", "build", "--check"]],
    }
    if kind == "all":
        names = sorted(path.relative_to(ROOT).as_posix() for path in books)
        found[f"nbval, {len(books)} notebooks"] = [[*NBVAL, *names]]
    rest = [f"--ignore={folder}" for folder in HALF]
    return found | {"pytest": [[*PYTEST, "-m", CHOSEN[kind], *half] for half in (HALF, rest)]}


def run(commands: list[list[str]]) -> tuple[int, list[str]]:
    """Run commands side by side; show the first one's output as it comes and the others' when it is done.

    Returns: the largest exit code, and each command's last line that is not empty.
    """
    with tempfile.TemporaryDirectory(prefix="course-test-") as home:
        environment = os.environ | {"COURSE_HOME": home, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        if len(commands) > 1:
            environment["OMP_NUM_THREADS"] = "1"
        outputs = [subprocess.PIPE, *(tempfile.TemporaryFile("w+") for _ in commands[1:])]  # noqa: SIM115
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                text=True,
            )
            for command, out in zip(commands, outputs, strict=True)
        ]
        closing = [_show(processes[0].stdout)]
        for process, out in zip(processes[1:], outputs[1:], strict=True):
            process.wait()
            out.seek(0)
            closing.append(_show(out))
        return max(process.wait() for process in processes), closing


def _show(lines: IO[str]) -> str:
    last = ""
    with lines:
        for line in lines:
            print(line, end="", flush=True)
            last = line.strip() or last
    return last


def together(closing: list[str], seconds: float) -> str:
    """pytest's closing line, of the whole: `== 2 failed, 10 passed in 3.20s ==` out of those of its processes."""
    counts: Counter[str] = Counter()
    for number, word in re.findall(r"(\d+) (\w+)(?=,| in )", " ".join(closing)):
        counts[word] += int(number)
    if len(closing) == 1 or not counts:
        return closing[-1]
    told = ", ".join(f"{number} {word}" for word, number in sorted(counts.items()))
    return f" {told} in {seconds:.2f}s ".center(80, "=")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", dest="kind", action="store_const", const="fast", default="all")
    parser.add_argument("--deep", dest="kind", action="store_const", const="deep")
    rows, closing, failed = [], "", False
    for name, commands in stages(parser.parse_args().kind).items():
        print(f"\n--- {name}", flush=True)
        began = time.monotonic()
        code, lines = run(commands)
        took = time.monotonic() - began
        failed |= code != 0
        closing = together(lines, took)
        rows.append(f"{took:7.1f} s  {'ok  ' if code == 0 else 'FAIL'}  {name}")
    print("", *rows, closing, sep="\n")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped.")

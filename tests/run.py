"""`make test`: the stages one after another, their times, and pytest's closing line at the end.

Each stage runs whatever the one before it said; the exit code is 1 when any of them failed. Notebooks run one at a time,
in one process after the other, and record nothing: progress goes to a folder that is thrown away.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = [sys.executable, "-m"]
NOTEBOOKS = [
    *("pytest", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-q", "--no-header", "-rfE"),
    *("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120", "--continue-on-collection-errors"),
]


def stages(kind: str) -> dict[str, list[str]]:
    """The commands of a kind of run ("all", "fast", "deep"), in order, by name."""
    chosen = {"all": "not deep", "fast": "not deep and not slow and not browser", "deep": "deep"}[kind]
    tests = {"pytest": ["pytest", "-m", chosen]}
    if kind == "deep":
        return tests
    quick = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "course build --check": ["course", "build", "--check"],
    }
    books = sorted(str(path.relative_to(ROOT)) for folder in ("notebooks", "labs", "solutions") for path in _in(folder))
    nbval = {f"nbval, {len(books)} notebooks": [*NOTEBOOKS, *books]} if kind == "all" and books else {}
    return quick | nbval | tests


def _in(folder: str) -> list[Path]:
    return list((ROOT / folder).glob("[0-9][0-9]_*.ipynb"))


def run(command: list[str], home: str) -> tuple[int, str]:
    """Show what a command prints as it comes; return its exit code and the last line that is not empty."""
    environment = os.environ | {"COURSE_HOME": home, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    last = ""
    with subprocess.Popen(
        PYTHON + command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", dest="kind", action="store_const", const="fast", default="all")
    parser.add_argument("--deep", dest="kind", action="store_const", const="deep")
    rows, closing, failed = [], "", False
    for name, command in stages(parser.parse_args().kind).items():
        print(f"\n--- {name}", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="course-test-") as home:
            code, closing = run(command, home)
        failed |= code != 0
        rows.append(f"{time.monotonic() - began:7.1f} s  {'ok  ' if code == 0 else 'FAIL'}  {name}")
    print("", *rows, closing, sep="\n")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped.")

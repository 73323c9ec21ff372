"""The tests of everything that touches Triton, with the oldest one that the course supports.

    python tests/older_triton.py [PYTEST ARGUMENTS]

Triton 3.6.0 goes into a folder of its own, without its dependencies, before the installed one on the path; torch stays.
What it prints last is pytest's closing line. Exit code: pytest's, or 1 with the reason where it cannot be installed.
"""

import os
import subprocess
import sys
from pathlib import Path

OLDEST = "3.6.0"
ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".cache" / f"triton-{OLDEST}"
TESTS = ("tests/kernels", "tests/hardware", "tests/model/test_kernels_setting.py")


def main() -> int:
    if not (FOLDER / "triton").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", FOLDER, f"triton=={OLDEST}"]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            print(f"Triton {OLDEST} could not be installed, so nothing was tested with it: {reason}")
            return 1
    path = os.pathsep.join([str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": path}
    told = subprocess.run(
        [sys.executable, "-c", "import triton; print(triton.__version__)"],
        env=environment,
        capture_output=True,
        text=True,
    )
    if told.stdout.strip() != OLDEST:
        print(f"Triton {OLDEST} does not start here: {(told.stderr.strip().splitlines() or [told.stdout])[-1]}")
        return 1
    print(f"Triton {told.stdout.strip()}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", *TESTS, *sys.argv[1:]]
    return subprocess.run(command, env=environment, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())

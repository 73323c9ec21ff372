"""The sandbox: bubblewrap around a worker, so that an answer finds Python, torch and itself, and nothing else.

Level A, isolated: no network, a read-only system without /etc, /home and the course, small private /tmp and /dev/shm,
process and user namespaces of its own with no further ones, the user nobody, and limits on memory, CPU time, files,
processes and descriptors. Level C, none: a plain process of the grader's own user, with the same limits but that on
processes.

An entry of the leaderboard that is measured on a GPU also sees the card's device files and the system's programs (Triton
calls a C compiler), and its limits are wider. That was not run: there was no GPU where this was written.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from course.authoring import places

NOBODY = 65534
SYSTEM = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
GPU_SYSTEM = ("/usr/bin", "/usr/include", "/usr/libexec", "/bin", "/sys")
STAGE = "/stage"  # where the few modules an answer may import lie
WORK = "/tmp"  # where the answer lies and runs


@dataclass(frozen=True)
class Limits:
    """What one worker may take; sizes in bytes. All but `case` and `processes` bind each process by itself."""

    case: float = 10.0  # seconds for one case of an exercise
    memory: int = 2 << 30  # address space beyond what the worker holds before the answer is loaded
    processes: int = 4  # processes and threads beyond the worker's own
    file: int = 16 << 20
    descriptors: int = 64
    seconds: int = 120  # of CPU time


ON_GPU = {"memory": None, "processes": 64, "descriptors": 1024, "file": 256 << 20}  # where one has to be driven
TEMPORARY, SHARED = 64 << 20, 16 << 20  # bytes of /tmp and of /dev/shm
MEND = (
    "It takes bubblewrap 0.8 or newer and user namespaces: sysctl kernel.unprivileged_userns_clone=1 (Debian), "
    "kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), or a container started with "
    "--security-opt seccomp=unconfined."
)
PROBE = """
import ctypes, os, resource, signal, socket, sys
wrong = []
if os.getuid() == 0 or os.getpid() > 9 or os.path.exists("/home"):
    wrong.append("the worker sees the system")
if [name for _, name in socket.if_nameindex() if name != "lo"]:
    wrong.append("the worker has a network")
if ctypes.CDLL(None).unshare(0x10000000) == 0:
    wrong.append("the worker can make further namespaces")
if not os.statvfs("/").f_flag & os.ST_RDONLY:
    wrong.append("the worker can write to the system")
if wrong:
    sys.exit(" and ".join(wrong))
resource.setrlimit(resource.RLIMIT_NPROC, (4, 4))
children = []
try:
    while len(children) < 4:
        children.append(os.fork())
        if not children[-1]:
            os._exit(signal.pause() or 0)
except BlockingIOError:
    pass
for child in children:
    os.kill(child, signal.SIGKILL)
if not 1 <= len(children) <= 3:
    sys.exit("the number of processes cannot be bounded")
"""


def interpreter() -> Path:
    return Path(os.path.realpath(sys.executable))


def libraries() -> list[Path]:
    """The folders in which torch and what it needs are installed."""
    return [path for path in map(Path, dict.fromkeys(sys.path)) if path.name in ("site-packages", "dist-packages")]


def environment(stage: str, home: str, interpret: bool) -> dict[str, str]:
    """All that an answer's environment holds."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "USER": "nobody",
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join([stage, *map(str, libraries())]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1" if interpret else "0",
    }


def isolated(command: list[str], stage: Path, gpu: bool = False) -> list[str]:
    """The command, inside bubblewrap. `stage` is a folder that others may read. gpu: with the cards of this machine."""
    prefix = Path(os.path.realpath(sys.base_prefix))
    ours = [path for path in (interpreter(), prefix / "lib", prefix / "lib64", *libraries()) if path.exists()]
    places_of = {str(path): str(path) for path in ours} | {STAGE: str(stage)}  # inside -> outside
    outer = []
    if os.getuid() == 0:
        outer, places_of = _as_nobody(places_of)
    inner = ["bwrap", "--die-with-parent", "--unshare-all", "--unshare-user", "--disable-userns"]
    inner += ["--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", "--cap-drop", "ALL"]
    inner += ["--size", str(TEMPORARY), "--tmpfs", WORK, "--proc", "/proc"]
    cards = [str(path) for path in sorted(Path("/dev").glob("nvidia*"))] if gpu else []
    inner += ["--dev", "/dev", *(part for path in cards for part in ("--dev-bind", path, path))]
    inner += ["--size", str(SHARED), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for path in (*SYSTEM, *(GPU_SYSTEM if gpu else ())):
        inner += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind-try", path, path]
    if any(places.root().is_relative_to(path) for path in SYSTEM):
        inner += _emptied(places.root())
    for inside, outside in places_of.items():
        inner += ["--ro-bind", outside, inside]
    for package in (path / "course" for path in libraries()):
        inner += _emptied(package) if package.is_dir() else []
    inner += ["--chdir", WORK, "--remount-ro", "/", "--"]
    return outer + inner + command


def _as_nobody(places_of: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """For a grader that is root, on whom limits do not bind: become nobody first.

    What nobody may not reach, such as a Python in root's home, is laid under an empty /tmp by a bubblewrap outside.
    """
    outer = ["bwrap", "--die-with-parent", "--dev-bind", "/", "/", "--tmpfs", "/tmp"]
    moved = {inside: f"/tmp/{number}" for number, inside in enumerate(places_of)}
    for inside, place in moved.items():
        outer += ["--ro-bind", places_of[inside], place]
    outer += ["--", "setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--no-new-privs", "--"]
    return outer, moved


def _emptied(folder: Path) -> list[str]:
    return ["--size", "4096", "--tmpfs", str(folder), "--remount-ro", str(folder)]


@lru_cache
def level() -> tuple[str, str, str]:
    """The level that this machine can give, found by running it: its letter, what it means, and the fix ("" for A)."""
    none = "C", "Answers run as plain processes of your own user, with your files and network open to them:"
    if sys.platform != "linux":
        return none[0], f"{none[1]} bubblewrap needs Linux.", "Grade on Linux or in WSL."
    for program, package in (("bwrap", "bubblewrap"), ("setpriv", "util-linux")):
        if not shutil.which(program):
            return none[0], f"{none[1]} there is no {program} here.", f"Install it: apt install {package}."
    with tempfile.TemporaryDirectory() as stage:
        os.chmod(stage, 0o755)
        command = isolated([str(interpreter()), "-I", "-S", "-c", PROBE], Path(stage))
        try:
            tried = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
        except subprocess.TimeoutExpired:
            return none[0], f"{none[1]} bubblewrap did not start within 30 seconds.", MEND
    if tried.returncode:
        return none[0], f"{none[1]} in bubblewrap, {tried.stderr.strip()[:200] or 'Python does not start'}.", MEND
    return "A", "Answers run isolated: no network, no files but Python's and their own, small limits.", ""

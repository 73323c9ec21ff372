"""Several ranks from a notebook: each a process of its own, on this machine.

values = run_ranks("ranked.py", "step", 4, {"tokens": 16}, nodes=2)

calls `step(tokens=16)` on four ranks that have met in `torch.distributed`, and hands back what each returned. The
function is in a module or a file, because a rank is a fresh Python that knows nothing of the notebook.
"""

import importlib.util
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from course.parallel.grid import Grid

JOB = "job"
GRACE = 0.2  # seconds that ranks get to say what they know, once one has failed or time is up


class RanksError(Exception):
    """One sentence on which rank failed, where and why. `rank`: which; `traceback`: all of it, where there is one."""

    def __init__(self, sentence: str, rank: int | None = None, traceback: str = ""):
        super().__init__(sentence)
        self.rank, self.traceback = rank, traceback


def run_ranks(
    module: str | os.PathLike,
    function: str,
    ranks: int,
    arguments: dict[str, Any] | None = None,
    nodes: int = 1,
    seconds: float = 120.0,
    say: Callable[[str], None] | None = print,
) -> list[Any]:
    """Call a function with the same arguments on every rank; it finds its own rank with `torch.distributed.get_rank()`.

    module: a module's name, the path of a .py file, or source text (anything with a line break). arguments, and what comes
    back: trees of dict, list, None, bool, int, float, str and tensors, which travel as safetensors and JSON. nodes: the ranks
    are told to be on so many machines (`Grid.from_environment`). say: gets each line that a rank prints, as it comes.
    Each rank has one thread, a GPU where the machine has one for each rank, and else talks through gloo.

    Returns: the values, in order of rank.
    Raises: RanksError when a rank fails or ends without a word, when time is up (which says where each rank stood),
    or a value cannot be sent. No process is left behind then, nor after Ctrl-C, nor when this process is killed.
    """
    grid = Grid(ranks, nodes)
    with TemporaryDirectory(prefix="ranks-") as name:
        folder, processes = Path(name), []
        path = prepare(folder, module, function, arguments, f"file://{name}/meeting", watched=True)
        try:
            for rank in range(ranks):
                processes.append(_start(folder, rank, grid))
            _follow(processes, folder, path, seconds, say)
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            for process in processes:
                process.wait()
                process.stdin.close()
                process.stdout.close()
        return values(folder, ranks)


def prepare(
    folder: Path,
    module: str | os.PathLike,
    function: str,
    arguments: dict[str, Any] | None = None,
    init: str = "env://",
    watched: bool = False,
) -> str:
    """Write a job for `course.parallel.rank`, to be started by torchrun, or by `run_ranks`, which also watches it.

    Returns: the path of the file that holds the function. Raises: RanksError when there is none, or an argument cannot be sent.
    """
    from course.checking.wire import WireError, pack

    name, text = "", str(module)
    if "\n" in text:
        path = folder / "source.py"
        path.write_text(text)
    elif text.endswith(".py"):
        path = Path(text).resolve()
        if not path.exists():
            raise RanksError(f"there is no file {text}")
    else:
        name, path = text, _origin(text)
    job = {"module": name, "path": str(path), "function": function, "arguments": arguments or {}}
    try:
        frame = pack(job | {"init": init, "watched": watched})
    except WireError as error:
        raise RanksError(f"the arguments cannot be sent: {error}") from None
    (folder / JOB).write_bytes(frame)
    return str(path)


def values(folder: Path, ranks: int) -> list[Any]:
    """What the ranks of a job left. Raises: RanksError when one left nothing, or what cannot be sent."""
    from course.checking.wire import Foreign
    from course.parallel.rank import read_frame

    def foreign(tree):
        inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
        return tree if isinstance(tree, Foreign) else next(filter(None, map(foreign, inner)), None)

    found = []
    for rank in range(ranks):
        path = folder / f"{rank}.value"
        if not path.exists():
            raise RanksError(f"rank {rank} of {ranks} left no value", rank)
        found.append(read_frame(path)["value"])
        if what := foreign(found[-1]):
            raise RanksError(f"rank {rank} of {ranks} returned what cannot be sent: {what.what}", rank)
    return found


def _origin(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin:
        raise RanksError(f"there is no module {name!r}; a file's name ends in .py, and source text has a line break")
    return Path(spec.origin)


def _start(folder: Path, rank: int, grid: Grid) -> subprocess.Popen:
    import course

    root = str(Path(course.__file__).parents[1])
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    told = {"RANK": rank, "WORLD_SIZE": grid.ranks, "LOCAL_RANK": grid.index(rank), "LOCAL_WORLD_SIZE": grid.per_node}
    told |= {"GROUP_RANK": grid.node(rank), "OMP_NUM_THREADS": 1, "PYTHONUNBUFFERED": 1}
    told["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    told["GLOO_SOCKET_IFNAME"] = loopback[0]  # a machine's own name may lead nowhere
    return subprocess.Popen(
        [sys.executable, "-m", "course.parallel.rank", str(folder)],
        env=os.environ | {name: str(value) for name, value in told.items()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _follow(processes: list[subprocess.Popen], folder: Path, path: str, seconds: float, say) -> None:
    """Hand on what the ranks print, until all are done. Raises: RanksError when one fails or time is up."""
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for rank, process in enumerate(processes):
            selector.register(process.stdout, selectors.EVENT_READ, _Lines(rank, say))
        while True:
            running = [rank for rank, process in enumerate(processes) if process.poll() is None]
            failed = any(process.returncode for process in processes)
            if failed:
                time.sleep(GRACE)
            _hear(selector, 0.05 if running and not failed else 0)
            if failed or not running:
                while _hear(selector, 0):
                    pass
            if failed:
                raise _failure([process.poll() for process in processes], folder)
            if not running:
                return
            if time.monotonic() > until:
                raise _late(processes, running, folder, path, seconds)


class _Lines:
    def __init__(self, rank: int, say):
        self.rank, self.say, self.rest = rank, say, b""

    def __call__(self, more: bytes) -> None:
        *whole, self.rest = (self.rest + more).split(b"\n") if more else (*filter(None, [self.rest]), b"")
        for line in whole if self.say else ():
            self.say(f"rank {self.rank}: {line.decode(errors='replace')}")


def _hear(selector: selectors.BaseSelector, wait: float) -> bool:
    ready = selector.select(wait)
    for key, _ in ready:
        data = os.read(key.fd, 1 << 16)
        if not data:
            selector.unregister(key.fileobj)
        key.data(data)
    return bool(ready)


def _failure(codes: list[int | None], folder: Path) -> RanksError:
    """The rank that failed first: one that ended without a word, for those that lost it do say so; else the earliest."""
    told = {}
    for rank, code in enumerate(codes):
        if code and not (folder / f"{rank}.error").exists():
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            return RanksError(f"rank {rank} of {len(codes)} {how}, without a word on why", rank)
        if code:
            told[rank] = json.loads((folder / f"{rank}.error").read_text())
    rank = min(told, key=lambda rank: told[rank]["time"])
    error = told[rank]
    return RanksError(f"rank {rank} of {len(codes)}{error['where']}: {error['says']}", rank, error["traceback"])


def _late(processes: list, running: list[int], folder: Path, path: str, seconds: float) -> RanksError:
    for rank in running:
        processes[rank].send_signal(signal.SIGUSR1)
    time.sleep(GRACE)
    stood = []
    for rank in running:
        stack = (folder / f"{rank}.stack").read_text() if (folder / f"{rank}.stack").exists() else ""
        line = re.search(rf'File "{re.escape(path)}", line (\d+) in (.+)', stack)
        stood.append(f"rank {rank} at line {line[1]} of {Path(path).name}, in {line[2]}" if line else f"rank {rank}")
    return RanksError(f"{len(running)} of {len(processes)} ranks were not done after {seconds:g} s: {'; '.join(stood)}")

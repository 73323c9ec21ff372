"""Starting a worker, talking to it under a deadline, and ending it with everything it started."""

import contextlib
import faulthandler
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from course.checking.wire import HEADER, WireError, lengths, pack, unpack

PRINTED = 4000  # characters of an answer's own output that are kept
LAUNCH = {"kernel", "signature", "constexprs"}  # what is read of a launch before it is compiled


class WorkerEnded(Exception):
    """The worker gave no answer: one sentence says how."""


class Worker:
    """One process that runs one answer. Requests and replies are frames; what it prints is kept up to a cap."""

    def __init__(self, pid: int, requests: int, replies: int, printed: int, folder, process=None):
        self.pid, self.requests, self.replies, self.output = pid, requests, replies, printed
        self.folder, self.process = folder, process
        self.text = bytearray()
        self.calls = 0
        for descriptor in (requests, replies, printed):
            os.set_blocking(descriptor, False)

    def request(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one request and return its reply.

        Raises: WorkerEnded when the process dies, does not answer in time, or answers with what cannot be read.
        """
        self.calls += 1
        mark = {"id": self.calls, "nonce": secrets.token_hex(8)}
        reply = self._exchange(pack(mark | message), time.monotonic() + seconds, seconds)
        if {key: reply.get(key) for key in mark} != mark:
            raise WorkerEnded("It sent a reply to a question that was not asked.")
        return _well_formed(reply)

    def _exchange(self, outgoing: bytes, deadline: float, seconds: float) -> dict[str, Any]:
        incoming, rest, wanted = bytearray(), memoryview(outgoing), None
        with selectors.DefaultSelector() as selector:
            selector.register(self.requests, selectors.EVENT_WRITE)
            selector.register(self.replies, selectors.EVENT_READ)
            selector.register(self.output, selectors.EVENT_READ)
            while wanted is None or len(incoming) < wanted:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise WorkerEnded(
                        f"It did not finish within {seconds:.0f} seconds. Is there a loop that never ends?"
                    )
                for key, _ in selector.select(left):
                    if key.fd == self.requests:
                        rest = self._write(rest, selector)
                    elif key.fd == self.output:
                        self._listen(selector)
                    else:
                        data = self._receive()
                        incoming += data
                        if wanted is None and len(incoming) >= HEADER.size:
                            text, blob = self._lengths(bytes(incoming[: HEADER.size]))
                            wanted = HEADER.size + text + blob
        try:
            start = HEADER.size + text
            return unpack(bytes(incoming[HEADER.size : start]), bytes(incoming[start:wanted]))
        except WireError as error:
            raise WorkerEnded(str(error)) from None

    def _write(self, rest: memoryview, selector) -> memoryview:
        try:
            rest = rest[os.write(self.requests, rest) :]
        except BrokenPipeError:
            rest = rest[:0]
        if not rest:
            selector.unregister(self.requests)
        return rest

    def _listen(self, selector) -> None:
        data = os.read(self.output, 1 << 16)
        self.text += data[: max(0, PRINTED - len(self.text))]
        if not data:
            selector.unregister(self.output)

    def _receive(self) -> bytes:
        data = os.read(self.replies, 1 << 20)
        if not data:
            raise WorkerEnded(self._how_it_died())
        return data

    def _lengths(self, header: bytes) -> tuple[int, int]:
        try:
            return lengths(header)
        except WireError as error:
            raise WorkerEnded(str(error)) from None

    def _how_it_died(self) -> str:
        code = self._wait()
        number = abs(code or 0) - (128 if (code or 0) > 0 else 0)  # a sandbox passes signal 9 on as exit code 137
        if number in {*signal.Signals}:
            return f"It ended the Python process ({signal.Signals(number).name})."
        return "It ended the Python process" + (f" (exit code {code})." if code is not None else ".")

    def _wait(self) -> int | None:
        """The exit code once the process has ended (negative: the signal), or None while it runs."""
        if self.process is not None:
            try:
                return self.process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                return None
        for _ in range(1000):
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return None
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        return None

    def printed(self) -> str:
        return self.text.decode(errors="replace")

    def close(self) -> None:
        """End the process and every process it left in its group."""
        for descriptor in (self.requests, self.replies, self.output):
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wait()
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _well_formed(reply: dict[str, Any]) -> dict[str, Any]:
    """The reply with every part there and of its type, whoever wrote it."""
    kinds = {"status": str, "changed": list, "launches": list, "error": dict, "beside": dict, "times": dict}
    reply = {part: None if kind is str else kind() for part, kind in kinds.items()} | {"value": None} | reply
    right = all(type(reply[part]) is kind for part, kind in kinds.items())
    right = right and all(type(name) is str for name in reply["changed"])
    if not right or not all(type(launch) is dict and set(launch) >= LAUNCH for launch in reply["launches"]):
        raise WorkerEnded("It sent a reply of the wrong form.")
    return reply


def start() -> Worker:
    """A worker on this machine: a fork where that is safe and interprets kernels, else a fresh process."""
    safe = sys.platform == "linux" and os.environ.get("TRITON_INTERPRET") == "1"
    return forked() if safe else fresh()


def forked() -> Worker:
    """A child of this process, which has torch loaded already: it starts in a few milliseconds."""
    from course.checking import worker  # here, so that the child need not import it

    folder = tempfile.TemporaryDirectory(prefix="answer-")
    (request_out, request_in), (reply_out, reply_in), (printed_out, printed_in) = os.pipe(), os.pipe(), os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: the child touches none of them
        pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            for descriptor in (request_in, reply_out, printed_out):
                os.close(descriptor)
            worker_child(worker, request_out, reply_in, printed_in, Path(folder.name))
        finally:
            os._exit(0)
    for descriptor in (request_out, reply_in, printed_in):
        os.close(descriptor)
    return Worker(pid, request_in, reply_out, printed_out, folder)


def worker_child(worker, requests: int, replies: int, printed: int, folder: Path) -> None:
    """What the forked child does: leave the parent's streams alone, bound itself, serve."""
    import torch

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    sys.settrace(None)
    faulthandler.disable()  # it would tell of a crash on a stream of the parent
    os.chdir(folder)
    torch.set_num_threads(1)
    worker.limit()
    worker.serve(os.fdopen(requests, "rb"), os.fdopen(replies, "wb"), folder)


def fresh(command: list[str] | None = None, environment: dict[str, str] | None = None, folder=None) -> Worker:
    """A worker in a new Python process, or behind any command that ends in one (a sandbox)."""
    folder = folder or tempfile.TemporaryDirectory(prefix="answer-")
    command = command or [sys.executable, "-m", "course.checking.worker", folder.name]
    environment = environment or os.environ | {"TRITON_INTERPRET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True, bufsize=0
    )
    descriptors = [os.dup(stream.fileno()) for stream in (process.stdin, process.stdout, process.stderr)]
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    return Worker(process.pid, *descriptors, folder, process)


def not_interpreting() -> dict[str, str]:
    """The environment of a process that compiles kernels for a real chip."""
    return os.environ | {"TRITON_INTERPRET": "0", "PYTHONDONTWRITEBYTECODE": "1"}

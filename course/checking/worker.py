"""The process in which an answer runs. It knows the answer and the inputs it is sent, and nothing that was wanted.

It reads one frame a request and writes one frame a reply, in order:
  hello  -> ready: torch is imported, the limits stand
  load   the source of the answer, the prelude, the earlier functions it may call -> ready
  call   named inputs -> a value, or how the call failed
  compile  launches of kernels -> registers, shared memory or the compiler's complaint (needs a process that does not interpret)
  time   named inputs, a device -> a value, and the seconds it took there
Every reply repeats the request's id and nonce.
"""

import importlib.util
import json
import linecache
import os
import resource
import sys
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch.overrides import TorchFunctionMode

from course.checking.wire import HEADER, lengths, pack, unpack

MEMORY = 4 << 30  # bytes of address space beyond what the process has at its start
FILES = 64 << 20  # bytes of the largest file an answer may write
ANSWER = "answer.py"  # the file in the worker's folder that holds the prelude and then the answer
ENGINE = (  # there for every answer
    "course",
    "course.checking",
    "course.checking.host_waits",
    "course.checking.wire",
    "course.checking.worker",
)
KERNEL_ENGINE = (  # there for one that launches kernels
    "course.checking.only_kernels",
    "course.checking.timed",
    "course.kernels",
    "course.kernels.checked",
    "course.kernels.compiler",
    "course.kernels.interpreter",
    "course.kernels.launch",
    "course.kernels.low_precision",
    "course.kernels.machine",
    "course.kernels.memory",
    "course.kernels.operations",
)
SAID = 600  # characters of an error message that are passed on


class ForbiddenCall(Exception):
    """The answer called what the exercise asks it to write."""


def serve(requests: BinaryIO, replies: BinaryIO, folder: Path) -> None:
    """Answer requests until the other side closes."""
    answer, prelude = None, ""
    while request := _read(requests):
        try:
            if request["op"] == "hello":
                reply = {"status": "ready"}
            elif request["op"] == "load":
                prelude = request["prelude"]
                answer = Answer(request, folder)
                reply = {"status": "ready"}
            elif request["op"] == "compile":
                reply = answer.compile(request["launches"], request.get("code", 0))
            elif request["op"] == "time":
                reply = answer.time(request["arguments"], request["device"], request["repeat"])
            else:
                reply = answer.call(request["arguments"])
        except BaseException as error:
            reply = _failure(error, folder / ANSWER, prelude.count("\n"))
        with suppress(Exception):
            sys.stdout.flush()
        mark = {"id": request["id"], "nonce": request["nonce"]}
        try:
            frame = pack(mark | reply)
        except Exception as error:
            frame = pack(
                mark | {"status": "raised", "error": {"type": "ValueError", "message": str(error), "line": None}}
            )
        replies.write(frame)
        replies.flush()


class Answer:
    """A loaded answer: its module, and the file it lies in, which Triton and tracebacks read."""

    def __init__(self, request: dict[str, Any], folder: Path):
        import course

        self.kernel, self.tags = request["kernel"], request["tags"]
        if self.kernel:
            from course.checking.timed import timed  # with torch's clocks in it, as they are before the answer is run

            self.timed = timed
        self.forbidden = [_resolve(name) for name in request["forbids"]]
        self.path = folder / ANSWER
        before = request["prelude"]
        earlier = {}
        for number, (name, part) in enumerate(request["earlier"].items()):
            module = _module(folder / f"earlier_{number}.py", before + part["source"])
            earlier[name] = (part["entry"], getattr(module, part["entry"]))
        course.mine = lambda name: earlier[name][1]
        _shut_out(request["gives"], self.kernel)
        given = {entry: function for entry, function in earlier.values()} | {"mine": course.mine}
        self.path.write_text(before + request["source"])
        self.module = _module(self.path, before + request["source"], given)
        self.function = getattr(self.module, request["entry"])
        self.last: Any = None  # a kernel's result is kept until the next one is there: no two may share memory

    def call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the entry function on inputs of its own, and say whether it changed them."""
        before = {name: pack({name: value}) for name, value in arguments.items()}
        with ExitStack() as stack:
            log = tally = None
            if self.kernel:
                from course.checking.only_kernels import only_kernels, refuse_views
                from course.kernels.checked import checked

                log = stack.enter_context(checked())
                tally = stack.enter_context(only_kernels(reads="only kernels read" not in self.tags))
            if "no host wait" in self.tags:
                from course.checking.host_waits import NoHostWait

                stack.enter_context(NoHostWait())
            if self.forbidden:
                stack.enter_context(_Forbid(self.forbidden))
            value = self.function(**arguments)
        if self.kernel:
            refuse_views(value, arguments, self.last)
            self.last = value
        changed = [name for name, value in arguments.items() if pack({name: value}) != before[name]]
        reply = {"status": "value", "value": value, "changed": changed}
        if self.kernel:
            reply |= {"launches": [launch.to_json() for launch in log.launches], "beside": vars(tally)}
        return reply

    def compile(self, launches: list, code: int = 0) -> dict[str, Any]:
        """Compile launches; the first `code` of them are told with their machine code."""
        from course.kernels.machine import compile_here

        found = [compile_here(self.path, launch, code=number < code) for number, launch in enumerate(launches)]
        for each in found:
            each["code"] = {"sass": each["code"]["sass"]} if each["code"] else None
        return {"status": "value", "value": found}

    def time(self, arguments: dict[str, Any], device: str, repeat: int) -> dict[str, Any]:
        return {"status": "value"} | self.timed(self.function, arguments, device, repeat)


class _Forbid(TorchFunctionMode):
    def __init__(self, forbidden):
        super().__init__()
        self.names = {id(function): name for name, function in forbidden if function is not None}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if id(func) in self.names:
            raise ForbiddenCall(f"it calls {self.names[id(func)]}, which is out of bounds in this exercise")
        return func(*args, **(kwargs or {}))


def _resolve(dotted: str) -> tuple[str, Any]:
    """A name with the function of torch it stands for; None for one of another library, which only reading can find."""
    root, *parts = dotted.split(".")
    value: Any = {"Tensor": torch.Tensor, "torch": torch}.get(root)
    for part in parts:
        value = getattr(value, part, None)
    return dotted, value


def _module(path: Path, text: str, given: dict[str, Any] | None = None) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    linecache.checkcache(str(path))
    vars(module).update(given or {})
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    return module


class _Shut:
    """A finder that refuses every part of course that the answer is not given."""

    def __init__(self, open_modules: set[str]):
        self.open = open_modules

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "course" and name not in self.open:
            raise ImportError(f"{name} is not there for this answer")
        return None


def _shut_out(gives: list[str], kernel: bool) -> None:
    kept = {*ENGINE, *(KERNEL_ENGINE if kernel else ())}
    for module in gives:
        importlib.import_module(module)
        kept |= {name for name in sys.modules if name == module or name.startswith(module + ".")}
        kept |= {".".join(module.split(".")[:i]) for i in range(1, module.count(".") + 1)}
    for name in [name for name in sys.modules if name.startswith("course.") and name not in kept]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Shut(kept))


def _failure(error: BaseException, path: Path, offset: int) -> dict[str, Any]:
    """What went wrong and in which line of the answer, which begins `offset` lines into its file."""
    if type(error) is NotImplementedError and not str(error):
        return {"status": "not done"}
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = own[-1] - offset if own else None
    try:
        message = str(error)[:SAID]
    except BaseException:
        message = ""
    return {"status": "raised", "error": {"type": type(error).__name__[:80], "message": message, "line": line}}


def _read(requests: BinaryIO) -> dict[str, Any] | None:
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    text, blob = lengths(header)
    return unpack(requests.read(text), requests.read(blob))


def limit(
    memory: int | None = MEMORY,
    file: int = FILES,
    processes: int | None = None,
    descriptors: int | None = None,
    seconds: int | None = None,
) -> None:
    """Bound what the process may take; called in the worker before any answer is loaded.

    memory: None leaves it open, for a GPU's driver takes address space without measure. processes: how many processes and
    threads may come to those that /proc shows now: for a worker in a process namespace of its own. seconds: of CPU time.
    """
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_FSIZE, file)
    _bound(resource.RLIMIT_NOFILE, descriptors)
    _bound(resource.RLIMIT_CPU, seconds)
    pages = Path("/proc/self/statm")
    if memory is not None and pages.exists():
        _bound(resource.RLIMIT_AS, int(pages.read_text().split()[0]) * resource.getpagesize() + memory)
    if processes is not None:
        _bound(resource.RLIMIT_NPROC, len([*Path("/proc").glob("[0-9]*/task/*")]) + processes)


def _bound(what: int, most: int | None) -> None:
    if most is not None:
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def main() -> None:
    """A worker of its own process: frames on standard input and output, whatever the answer prints on standard error.

    Arguments: the folder to work in, and, in JSON, what `limit` takes.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    os.chdir(folder)
    limit(**json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
    serve(requests, replies, folder)
    os._exit(0)


if __name__ == "__main__":
    main()

"""One rank of a job that `prepare` wrote: join the others, call the function, leave its value, or its error, in the job's folder.

    python -m course.parallel.rank FOLDER

`run_ranks` starts it with the variables that torchrun sets, so on several machines with a common folder the same job runs as

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:PORT -m course.parallel.rank FOLDER
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
import torch.distributed as dist

from course.checking.wire import lengths, pack, unpack
from course.parallel.ranks import JOB


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    stack = (folder / f"{rank}.stack").open("w")  # stays open: `run_ranks` asks with SIGUSR1 where a late rank stands
    faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
    job = read_frame(folder / JOB)
    if job["watched"]:
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        _join(job)
        value = _function(job)(**job["arguments"])
        written = folder / f"{rank}.part"
        written.write_bytes(pack({"value": value}))
        written.rename(folder / f"{rank}.value")
        dist.destroy_process_group()
    except BaseException as error:
        written = folder / f"{rank}.part"
        written.write_text(json.dumps(_told(error, job["path"]) | {"time": time.time()}))
        written.rename(folder / f"{rank}.error")
        sys.stdout.flush()
        os._exit(1)  # at once: a rank that is left alone may never come to its end


def read_frame(path: Path) -> dict:
    frame = path.read_bytes()
    text, _ = lengths(frame[:8])
    return unpack(frame[8 : 8 + text], frame[8 + text :])


def _join(job: dict) -> None:
    """NCCL where this machine has a GPU for each of its ranks, else gloo."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if job["watched"]:
        local, here = rank, ranks  # its nodes are make-believe: all ranks are on this machine
    else:
        local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    where = {"init_method": job["init"], "rank": rank, "world_size": ranks}
    if torch.cuda.is_available() and torch.cuda.device_count() >= here:
        torch.cuda.set_device(local)
        dist.init_process_group("nccl", device_id=torch.device("cuda", local), **where)
    else:
        dist.init_process_group("gloo", **where)


def _function(job: dict):
    path = Path(job["path"])
    if job["module"]:
        module = import_module(job["module"])
    else:
        sys.path.insert(0, str(path.parent))
        spec = spec_from_file_location(path.stem, path)
        module = sys.modules[path.stem] = module_from_spec(spec)
        spec.loader.exec_module(module)
    if not hasattr(module, job["function"]):
        raise LookupError(f"{path.name} has no function {job['function']!r}")
    return getattr(module, job["function"])


def _told(error: BaseException, path: str) -> dict:
    """What went wrong, and the last line of the job's own file that led there, or else of any."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(frame.filename, frame.lineno, f", in {frame.name}") for frame in frames if frame.filename != __file__]
    own = [line for line in lines if line[0] == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        own = [(path, error.lineno, "")]
    where = [f", line {number} of {Path(name).name}{function}" for name, number, function in own[-1:] or lines[-1:]]
    says = " ".join(traceback.format_exception_only(error)[-1].split())
    return {"where": "".join(where), "says": says, "traceback": "".join(traceback.format_exception(error))}


def _end_with_the_parent() -> None:
    while os.read(0, 1):  # the other end of this pipe is closed when the parent ends, however it ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

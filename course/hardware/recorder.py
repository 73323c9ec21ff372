"""A profile of your own: a function is run under torch.profiler, on whatever this machine has, and read as a Trace."""

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from course.hardware.trace import Trace


def profile(function: Callable[[], object], to: str | Path | None = None, warm_up: int = 1) -> Trace:
    """Run `function` once under the profiler, after `warm_up` runs that do not count.

    to: where the trace is kept, as .json or .json.gz; nowhere by default. Shapes are recorded, for FLOP/s.
    Raises: what `function` raises.
    """
    import torch
    from torch.profiler import ProfilerActivity

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for _ in range(warm_up):
        function()
    if on_gpu:
        torch.cuda.synchronize()
    with _quiet(), torch.profiler.profile(activities=activities, record_shapes=True, acc_events=True) as recorded:
        function()
        if on_gpu:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(to) if to is not None else Path(folder, f"{getattr(function, '__name__', 'profile')}.json")
        recorded.export_chrome_trace(str(path))
        return Trace.read(path)


@contextmanager
def _quiet():
    """The profiler's library tells standard error, past Python, that it starts and stops."""
    logging.captureWarnings(True)
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        logging.captureWarnings(False)

"""Timing an answer's kernels on a device, in the answer's own process: one call on inputs that it has not seen before.

The cache is flushed before the call. The result's bits are read right after it, and once more at the end: a result that is
finished later, or overwritten by a later call, is none. Two times are taken: that of the stream on which the call was made,
and the time until the whole device is idle, which is longer where work was put on another stream. More calls on the same
inputs may follow, for a clock outside this process to hold the times against; they are not in the times given.

Device "cpu" is a rehearsal in the checked interpreter, whose times mean nothing. The other one, "cuda", was not run: there
was no GPU where this was written.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from course.checking.only_kernels import only_kernels, refuse_views
from course.checking.wire import pack

FLUSHED = 256 << 20  # bytes, several times any L2
NOW, EVENT, SYNCHRONIZE = time.perf_counter, torch.cuda.Event, torch.cuda.synchronize  # as they were before any answer


class Clock:
    """Seconds of a call on a device, each call with a cold cache."""

    def __init__(self, device: str):
        self.device = device
        self.flushed = torch.empty(FLUSHED if device == "cuda" else 1024, dtype=torch.uint8, device=device)

    def seconds(self, call: Callable[[], Any]) -> tuple[float, float, Any]:
        """Seconds on the stream, seconds until the device is idle, and what the call returned.

        The flush is queued before the first event, so that a GPU is still busy with it while Python prepares the launch.
        """
        self.flushed.zero_()
        if self.device == "cpu":
            begun = NOW()
            result = call()
            taken = NOW() - begun
            return taken, taken, result
        begin, end, idle = (EVENT(enable_timing=True) for _ in range(3))
        begin.record()
        result = call()
        end.record()
        SYNCHRONIZE()
        idle.record()
        idle.synchronize()
        return begin.elapsed_time(end) / 1e3, begin.elapsed_time(idle) / 1e3, result


def timed(function: Callable[..., Any], arguments: dict[str, Any], device: str, repeat: int) -> dict[str, Any]:
    """One timed call, and `repeat` - 1 more that are not; `settled` says whether its result stayed what it was."""
    inputs = {name: _on(device, value) for name, value in arguments.items()}
    clock, sent = Clock(device), _print(arguments)

    def once() -> tuple[float, float, Any]:
        with ExitStack() as stack:
            if device == "cpu":
                from course.kernels.checked import checked

                stack.enter_context(checked())
            stack.enter_context(torch.device(device))  # where an answer allocates without saying where
            stack.enter_context(only_kernels())
            return clock.seconds(lambda: function(**inputs))

    seconds, idle, value = once()
    bits = _print(value)
    for _ in range(repeat - 1):
        once()
    refuse_views(value, inputs)
    times = {"seconds": seconds, "idle": idle, "settled": _print(value) == bits}
    return {"value": value, "changed": [] if _print(inputs) == sent else ["inputs"], "times": times}


def _on(device: str, value: Any) -> Any:
    return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value


def _print(value: Any) -> str:
    return hashlib.sha256(pack({"value": value})).hexdigest()

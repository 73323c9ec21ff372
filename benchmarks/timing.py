"""How a call is timed: fresh inputs, a flushed cache, contestants in turns, outputs that must agree, the median of rounds.

On a GPU a time lies between two CUDA events on the one stream that everything here uses. Before the first of them the
stream gets a millisecond or so of flushing to do, so that the host is ahead by then: what it needs to launch a kernel is in
the time only where a contestant makes the host wait for the device.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 2e-2  # of a bf16 output's norm, and of its fingerprint
FLUSHED = 256 * 2**20  # bytes, several times any L2
LEAD = 12  # such flushes before a call: 3 GB written, a millisecond on an H100
WARM = 3  # rounds that are not counted


@dataclass(frozen=True)
class Clock:
    """Seconds that a call takes on a device."""

    device: str

    def seconds(self, call: Callable[[], Any]) -> tuple[float, Any]:
        if self.device == "cpu":
            begun = time.perf_counter()
            result = call()
            return time.perf_counter() - begun, result
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3, result


@dataclass(frozen=True)
class Bench:
    """A device, its clock, and what flushes its cache."""

    clock: Clock
    flush: Tensor
    rounds: int
    lead: int = 1  # flushes before a call

    @property
    def device(self) -> str:
        return self.clock.device

    def medians(self, calls: dict[str, Callable], draw: Callable[[int], tuple]) -> dict[str, float]:
        """Seconds of each call, in turns; all must agree on every round's inputs."""
        seconds: dict[str, list[float]] = {who: [] for who in calls}
        for number in range(WARM + self.rounds):
            inputs, prints = draw(number), {}
            for who in calls if number % 2 else reversed(calls):
                for _ in range(self.lead):
                    self.flush.zero_()
                taken, out = self.clock.seconds(lambda who=who, inputs=inputs: calls[who](*inputs))
                prints[who] = fingerprint(out)
                del out
                if number >= WARM:
                    seconds[who].append(taken)
            first = next(iter(calls))
            for who, its in prints.items():
                assert near(its, prints[first]), f"{who} and {first} differ: {its} and {prints[first]}"
        return {who: statistics.median(taken) for who, taken in seconds.items()}

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """Most memory that a call holds beside what is there before it; None on a CPU, where nobody counts."""
        if self.device == "cpu":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def fingerprint(out: Any) -> list[float]:
    """The norm of each tensor of an output."""
    parts = out if isinstance(out, tuple) else (out,)
    floats = (part if part.is_floating_point() and part.itemsize > 1 else part.float() for part in parts)  # not FP8
    return [torch.linalg.vector_norm(part, dtype=torch.float32).item() for part in floats]


def near(a: list[float], b: list[float]) -> bool:
    return all(abs(x - y) <= TOLERANCE * max(abs(y), 1e-6) for x, y in zip(a, b, strict=True))


def require_right(calls: dict[str, Callable], inputs: tuple, against: str = "eager") -> float:
    """Largest relative error of ours against another's, over the tensors of the output."""
    worst = 0.0
    pairs = [out if isinstance(out, tuple) else (out,) for out in (calls["ours"](*inputs), calls[against](*inputs))]
    for ours, theirs in zip(*pairs, strict=True):
        worst = max(worst, ((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp(min=1e-9)).item())
    assert worst < TOLERANCE, f"a relative error of {worst:.2g} against {against}"
    return worst


def able(calls: dict[str, Callable], inputs: tuple) -> tuple[dict[str, Callable], dict[str, str]]:
    """The calls that come to an end with these inputs, and of the others what they died of (as out of memory)."""
    alive, died = {}, {}
    for who, call in calls.items():
        try:
            call(*inputs)
            alive[who] = call
        except Exception as error:  # a peer's library may raise anything
            died[who] = said(error)
    if died and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return alive, died


def said(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"

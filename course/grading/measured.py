"""Measuring an entry on a GPU. Not run: there was no GPU where this was written; device "cpu" rehearses it, interpreted.

Each timed call has fresh secret inputs, finds a flushed cache, and sends back its whole result, which is compared here. The
time is the median over rounds, of the device's own events (`course.checking.timed`).

The events are read in the process that runs the entry, which cannot be trusted with them. So three things are held against
what is known outside: the least bytes, at the bytes a second that a copy reached here on the same card; a clock here, before
and after requests that differ in the number of calls alone; and the bits of the first inputs, asked for once more at the end.
That is not proof: an entry that lies by less than these allow, and that gets its lie past the reading of its text, is not found.
"""

import secrets
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from course.checking.answer import AnswerError
from course.checking.exercise import Exercise, Inputs
from course.checking.judge import Try, run, run_reference
from course.checking.timed import Clock
from course.checking.wire import pack
from course.exercises import every
from course.grading.bench import Refused
from course.grading.standard import drawn, least_stored, standard
from course.grading.workers import Workers

WARM = 3  # rounds that are not counted
SECONDS = 120.0  # for one request, the first of which compiles
OVER = (
    1.25  # times the bytes a second of a copy: reading alone is faster than a copy, and a cache keeps some of a result
)
LATE, LATE_SECONDS = 1.2, 1e-4  # what may lie between the end on the stream and a device that is idle
AGAIN = 20  # calls more in the request that the clock here is held against
OUTSIDE, OUTSIDE_SECONDS = (
    2.0,
    2e-3,
)  # what such a call may take by the clock here, over its time and the flush: Python's share


@dataclass(frozen=True)
class Card:
    """What entries are measured on."""

    name: str
    device: str  # "cuda", or "cpu" for a rehearsal, whose times mean nothing and are held against nothing
    rounds: int = 20

    def copy(self, size: int) -> float:
        """Bytes a second, read and written, of a copy that moves so many bytes in all."""
        return _copy(self.device, size, self.rounds)

    def measure(self, exercise: Exercise, source: str, workers: Workers) -> dict[str, Any]:
        """The median seconds of a call, and its share of the roof. Raises: Refused."""
        its, real = standard(exercise), self.device == "cuda"
        last = WARM + self.rounds
        seeds = [secrets.randbits(64) for _ in range(last)]

        def inputs() -> Iterator[tuple[int, Inputs]]:
            for number in range(last + 2):  # the last two: the first inputs, once more, and with more calls
                yield number, drawn(its, seeds[number % last] if number < last else seeds[0], its.gpu if real else 1)

        def ask(number: int) -> dict[str, Any]:
            return {"op": "time", "device": self.device, "repeat": 1 + AGAIN * (number > last)}

        taken, outside, first, least = [], [], b"", 0
        try:
            with workers.start(exercise, interpret=not real, gpu=real) as worker:
                for number, one in enumerate(run(exercise, source, every(), worker, inputs(), SECONDS, ask)):
                    taken.append(seconds_of(one))
                    outside.append(one.outside)
                    if number == 0:
                        first = pack({"value": one.value})
                        least = its.loads(one.inputs) + least_stored(run_reference(exercise.reference, one.inputs))
                    elif number >= last and pack({"value": one.value}) != first:
                        raise Refused("The same inputs gave other bits the second time.")
        except AnswerError as error:
            raise Refused(str(error)) from None
        seconds = statistics.median(taken[WARM:last])
        roof = self.copy(least)
        if real:
            refuse_faster_than_the_roof(min(taken[WARM:last]), least, roof)
            refuse_two_clocks(seconds, (outside[-1] - outside[-2]) / AGAIN)
        return {"seconds": seconds, "share_of_roof": least / seconds / roof}


def your_card() -> Card | None:
    """The card in this machine; None where there is none."""
    return Card(torch.cuda.get_device_name(0), "cuda") if torch.cuda.is_available() else None


def seconds_of(one: Try) -> float:
    """What a timed call took, until the whole device was idle. Raises: Refused where it was wrong, or not done when it said so."""
    if one.case.what or not one.returned:
        raise Refused(f"Wrong at the standard size, {one.case.sizes}: {one.case.what or 'it is not done'}.")
    seconds, idle = one.times.get("seconds"), one.times.get("idle")
    if not all(type(time) is float and 0 < time < SECONDS for time in (seconds, idle)):
        raise Refused("Its process told of a time that no call takes.")
    if one.times.get("settled") is not True:
        raise Refused("Its result changed after it had been returned.")
    if idle > LATE * seconds + LATE_SECONDS:
        raise Refused(
            f"Work went on for {1e6 * (idle - seconds):.0f} us after its stream was done: it uses another stream."
        )
    return max(seconds, idle) if idle > LATE * seconds else seconds


def refuse_faster_than_the_roof(seconds: float, least: int, roof: float) -> None:
    """Raises: Refused where the least bytes in that time are more than the card was seen to move."""
    if least / seconds > OVER * roof:
        raise Refused(
            f"Faster than the roof: {least:,} bytes at least in {1e6 * seconds:.1f} us are {least / seconds:.3g} bytes/s, "
            f"and a copy on this card reaches {roof:.3g}."
        )


def refuse_two_clocks(seconds: float, outside: float) -> None:
    """Raises: Refused where a call takes longer by the clock here than its process told, flush and Python allowed for."""
    if outside > OUTSIDE * seconds + OUTSIDE_SECONDS:
        raise Refused(
            f"Its process tells of {1e6 * seconds:.1f} us a call, and by the clock outside it takes {1e6 * outside:.1f} us."
        )


@lru_cache
def _copy(device: str, size: int, rounds: int) -> float:
    clock = Clock(device)
    source, target = (torch.zeros(max(size // 2, 1), dtype=torch.uint8, device=device) for _ in range(2))
    times = [clock.seconds(lambda: target.copy_(source))[0] for _ in range(WARM + rounds)]
    return size / statistics.median(times[WARM:])

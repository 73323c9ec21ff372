"""What a trace of torch.profiler shows: when something computed, when something communicated, and when both did.

Events are the kernels of a GPU, each on its stream. A trace without any is one of a CPU: its events are operators, each
on its thread, and what lies between them is time in Python and in PyTorch's own administration.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from course.hardware.intervals import gaps, intersection, length, union
from course.hardware.kernel_classes import COMMUNICATION, TRANSFER
from course.hardware.trace_file import Event, Raw, read

MS = 1e-3  # of a microsecond


@dataclass(frozen=True)
class Group:
    """The events of one name. `busy_ms` counts a moment once, `total_ms` as often as kernels ran in it."""

    name: str
    kind: str
    count: int
    total_ms: float
    busy_ms: float
    tflops: float | None  # TFLOP/s, where the shapes were recorded


@dataclass(frozen=True)
class Trace:
    """Events in order of their start, in microseconds since the first."""

    name: str
    device: str
    on: str  # "GPU" or "CPU"
    events: tuple[Event, ...]
    annotations: tuple[Event, ...]  # of the host: ranges that the program named
    sms: int | None = None

    @classmethod
    def read(cls, path: str | Path) -> "Trace":
        """Raises: TraceError, one sentence, for a file that is missing, broken or no trace."""
        path = Path(path)
        return cls.of(read(path), path.name)

    @classmethod
    def of(cls, raw: Raw, name: str) -> "Trace":
        if raw.gpu:
            events = [
                replace(event, flops=raw.flops.get(launcher))
                if launcher in raw.flops and event.kind == "gemm"
                else event
                for event, launcher in zip(raw.gpu, raw.external, strict=True)
            ]
        else:
            events = operators(raw.host)
        events = sorted(events, key=lambda event: event.start)
        origin = events[0].start
        shifted = (replace(event, start=event.start - origin) for event in events)
        ranges = (replace(event, start=event.start - origin) for event in raw.annotations)
        on = "GPU" if raw.gpu else "CPU"
        return cls(name, raw.device or on, on, tuple(shifted), tuple(ranges), raw.sms if raw.gpu else None)

    def busy(self, kinds: Collection[str] | None = None, stream: str | None = None) -> np.ndarray:
        """When any event of these classes, on this stream, ran: a union of intervals [N, 2] in microseconds."""
        return union(
            np.array(
                [
                    (event.start, event.end)
                    for event in self.events
                    if (kinds is None or event.kind in kinds) and (stream is None or event.stream == stream)
                ]
            )
        )

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The classes that occur, the busiest first."""
        found = {event.kind for event in self.events}
        return tuple(sorted(found, key=lambda kind: -length(self.busy({kind}))))

    @cached_property
    def streams(self) -> tuple[str, ...]:
        found = {event.stream for event in self.events}
        return tuple(sorted(found, key=lambda stream: -length(self.busy(stream=stream))))

    @property
    def computation(self) -> tuple[str, ...]:
        return tuple(kind for kind in self.kinds if kind not in (*COMMUNICATION, TRANSFER))

    @property
    def kernels(self) -> int:
        """Events without transfers."""
        return sum(event.kind != TRANSFER for event in self.events)

    @cached_property
    def span_ms(self) -> float:
        """From the first event's start to the last one's end."""
        return MS * max(event.end for event in self.events)

    @cached_property
    def busy_ms(self) -> float:
        return MS * length(self.busy())

    @cached_property
    def compute_busy_ms(self) -> float:
        return MS * length(self.busy(self.computation))

    @cached_property
    def communication_busy_ms(self) -> float:
        return MS * length(self.busy(COMMUNICATION))

    @cached_property
    def hidden_ms(self) -> float:
        """Communication while something computes."""
        return MS * length(intersection(self.busy(self.computation), self.busy(COMMUNICATION)))

    @property
    def exposed_ms(self) -> float:
        """Communication while nothing computes."""
        return self.communication_busy_ms - self.hidden_ms

    @property
    def hidden_fraction(self) -> float | None:
        """None where nothing is communicated."""
        return self.hidden_ms / self.communication_busy_ms if self.communication_busy_ms else None

    @property
    def idle_ms(self) -> float:
        return self.span_ms - self.busy_ms

    def gaps(self, count: int | None = None) -> list[tuple[float, float]]:
        """Start and length in ms of the times when nothing ran, the longest first."""
        found = gaps(self.busy())
        lengths = found[:, 1] - found[:, 0]
        order = np.argsort(-lengths, kind="stable")[:count]
        return [(MS * float(found[k, 0]), MS * float(lengths[k])) for k in order]

    def groups(self, count: int | None = None) -> list[Group]:
        """The events by name, those with the largest total first."""
        by_name: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            by_name[event.name].append(event)
        found = [_group(name, events) for name, events in by_name.items()]
        return sorted(found, key=lambda group: -group.total_ms)[:count]

    def to_json(self, top: int = 10) -> dict:
        """Times in ms, counts, and shares of 1."""
        return {
            "file": self.name,
            "device": self.device,
            "on": self.on,
            "span_ms": self.span_ms,
            "busy_ms": self.busy_ms,
            "compute_busy_ms": self.compute_busy_ms,
            "communication_busy_ms": self.communication_busy_ms,
            "hidden_ms": self.hidden_ms,
            "exposed_ms": self.exposed_ms,
            "hidden_fraction": self.hidden_fraction,
            "idle_ms": self.idle_ms,
            "kernels": self.kernels,
            "classes": {kind: MS * length(self.busy({kind})) for kind in self.kinds},
            "streams": {stream: MS * length(self.busy(stream=stream)) for stream in self.streams},
            "gaps": [{"start_ms": start, "ms": ms} for start, ms in self.gaps(5)],
            "top_kernels": [vars(group) for group in self.groups(top)],
        }


def operators(events: Iterable[Event]) -> list[Event]:
    """Of nested operators, those that do the work: the outermost whose time is for the larger part their own.

    An operator that mostly calls others is left out, and those are looked at; a transfer between ranks is always whole.
    """
    ordered = sorted(events, key=lambda event: (event.stream, event.start, -event.duration))
    called = [0.0] * len(ordered)  # time in what it calls directly
    open_: list[int] = []
    for place, event in enumerate(ordered):
        while open_ and (ordered[open_[-1]].stream != event.stream or ordered[open_[-1]].end <= event.start):
            open_.pop()
        if open_:
            called[open_[-1]] += event.duration
        open_.append(place)
    found: list[Event] = []
    for event, time in zip(ordered, called, strict=True):
        inside = found and found[-1].stream == event.stream and event.start < found[-1].end
        if not inside and (event.kind in COMMUNICATION or 2 * time <= event.duration):
            found.append(event)
    return found


def _group(name: str, events: list[Event]) -> Group:
    spans = union(np.array([(event.start, event.end) for event in events]))
    known = [event for event in events if event.flops]
    seconds = 1e-6 * sum(event.duration for event in known)
    tflops = 1e-12 * sum(event.flops for event in known) / seconds if seconds else None
    total = MS * sum(event.duration for event in events)
    return Group(name, events[0].kind, len(events), total, MS * length(spans), tflops)

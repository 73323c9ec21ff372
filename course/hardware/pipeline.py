"""A pipeline's schedule carried out event by event: when each rank works, waits, and how much it holds.

Published bubbles (DeepSeek-V3 report, table 2, for PP stages; F, B, W and F&B as in `Times`):

    1F1B        (PP - 1) (F + B)
    ZB1P        (PP - 1) (F + B - 2 W)
    DualPipe    (PP/2 - 1) (F&B + B - 3 W)

The first two are what comes out here, whatever the times. DualPipe's is what comes out, for the rank that waits longest,
where F = I = W; for other ratios it is near, on either side.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from course.hardware.schedules import Schedule, Slot


@dataclass(frozen=True)
class Times:
    """Of one stage and micro-batch, in any one unit. B is the whole backward pass, of which W are the weights."""

    forward: float
    backward: float
    weights: float
    both: float | None = None  # a forward and a backward pass at once; None: no gain, F + B
    send: float = 0.0  # from a stage to the next

    def of(self, slot: Slot) -> float:
        if len(slot.parts) == 2:
            return self.forward + self.backward if self.both is None else self.both
        one = {"F": self.forward, "B": self.backward, "I": self.backward - self.weights, "W": self.weights}
        return one[slot.kind]


@dataclass(frozen=True)
class Step:
    rank: int
    slot: Slot
    start: float
    end: float


@dataclass(frozen=True)
class Run:
    """A schedule carried out."""

    schedule: Schedule
    times: Times
    done: tuple[Step, ...]

    @cached_property
    def span(self) -> float:
        return max(work.end for work in self.done)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Of each rank."""
        busy = [0.0] * len(self.schedule.ranks)
        for work in self.done:
            busy[work.rank] += work.end - work.start
        return tuple(busy)

    @property
    def bubble(self) -> tuple[float, ...]:
        """Of each rank, how long it waits."""
        return tuple(self.span - busy for busy in self.busy)

    @property
    def bubble_share(self) -> float:
        """Of all ranks' time."""
        return sum(self.bubble) / self.span / len(self.busy)

    def held(self, rank: int) -> list[tuple[float, int]]:
        """When the number of activations changes that a rank holds, each of one stage and micro-batch, and to how many.

        A forward pass makes one, and it is gone with the gradient of the input.
        """
        changes: dict[float, int] = defaultdict(int)
        for work in self.done:
            if work.rank == rank:
                for what, _, _ in work.slot.parts:
                    if what == "F":
                        changes[work.start] += 1
                    elif what in "BI":
                        changes[work.end] -= 1
        count, found = 0, []
        for moment in sorted(changes):
            count += changes[moment]
            found.append((moment, count))
        return found

    @property
    def most_held(self) -> tuple[int, ...]:
        """Of each rank, the most activations at once."""
        return tuple(max(count for _, count in self.held(rank)) for rank in range(len(self.schedule.ranks)))

    def draw(self, axis) -> None:
        """A row for each rank on a Matplotlib axis: forward, backward, weights, and both at once."""
        import matplotlib.pyplot as plt

        cycle = plt.rcParams["axes.prop_cycle"].by_key()["color"]
        looks = {
            "F": ("forward", cycle[0]),
            "B": ("backward", cycle[1]),
            "I": ("gradient of the input", cycle[5]),
            "W": ("gradient of the weights", cycle[2]),
            "&": ("forward and backward at once", cycle[3]),
        }
        for key, (label, colour) in looks.items():
            drawn = False
            for rank in range(len(self.schedule.ranks)):
                bars = [
                    (work.start, work.end - work.start)
                    for work in self.done
                    if work.rank == rank and ("&" if len(work.slot.parts) == 2 else work.slot.kind) == key
                ]
                axis.broken_barh(
                    bars,
                    (rank - 0.45, 0.9),
                    facecolor=colour,
                    edgecolor="white",
                    linewidth=0.4,
                    label=label if bars and not drawn else None,
                )
                drawn = drawn or bool(bars)
        axis.set(xlim=(0, self.span), xlabel="time", ylabel="rank", title=self.schedule.name)
        axis.invert_yaxis()


def run(schedule: Schedule, times: Times) -> Run:
    """Each rank takes its slots in order, and begins one as soon as what it needs has come.

    Raises: ValueError where ranks wait for each other for ever.
    """
    ready: dict[tuple[str, int, int], float] = {}  # what is made, and when: "F" and "I" of a stage and micro-batch
    free = [0.0] * len(schedule.ranks)
    next_slot = [0] * len(schedule.ranks)
    done: list[Step] = []
    waiting = set(range(len(schedule.ranks)))
    while waiting:
        moved = False
        for rank in sorted(waiting):
            order = schedule.ranks[rank]
            while next_slot[rank] < len(order):
                slot = order[next_slot[rank]]
                needs = [need for part in slot.parts for need in _needs(part, schedule.stages)]
                if not all(need in ready for need, _ in needs):
                    break
                start = max([free[rank], *(ready[need] + times.send * sent for need, sent in needs)])
                free[rank] = start + times.of(slot)
                for what, stage, micro in slot.parts:
                    ready["I" if what in "BI" else what, stage, micro] = free[rank]
                done.append(Step(rank, slot, start, free[rank]))
                next_slot[rank] += 1
                moved = True
            if next_slot[rank] == len(order):
                waiting.discard(rank)
        if waiting and not moved:
            raise ValueError(f"{schedule.name}: ranks {sorted(waiting)} wait for each other")
    return Run(schedule, times, tuple(done))


def _needs(part: tuple[str, int, int], stages: int) -> list[tuple[tuple[str, int, int], bool]]:
    """What a part cannot begin without, and whether it has to be sent."""
    what, stage, micro = part
    if what == "F":
        return [(("F", stage - 1, micro), True)] if stage else []
    if what == "W":
        return [(("I", stage, micro), False)]
    return [(("F", stage, micro), False), *([(("I", stage + 1, micro), True)] if stage + 1 < stages else [])]

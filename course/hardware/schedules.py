"""The order in which each rank of a pipeline works through its micro-batches.

A *stage* is a part of the layers. `F` is its forward pass for one micro-batch; its backward pass is split into `I`, the
gradient of the input, for which the stage before waits, and `W`, the gradient of the weights, for which nobody waits.
`B` is both in one, and `&` marks a forward and a backward pass of two micro-batches that run at once, each hiding the
other's communication.

1F1B: Narayanan et al. 2021, section 2.2. ZB1P: Qi et al. 2023 (zero bubble, ZB-H1), section 2.1. DualPipe: DeepSeek-V3
report, section 3.2.1, figures 4 and 5. DualPipeV: deepseek-ai/DualPipe, README.md.
"""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One thing that a rank does. `parts` are (what, stage, micro-batch); two of them run at once."""

    parts: tuple[tuple[str, int, int], ...]

    @property
    def kind(self) -> str:
        return "&".join(what for what, _, _ in self.parts)


@dataclass(frozen=True)
class Schedule:
    """Of every rank, its slots in order."""

    name: str
    stages: int
    ranks: tuple[tuple[Slot, ...], ...]
    copies: int  # of each parameter in the whole pipeline

    @property
    def micro_batches(self) -> int:
        return len({micro for slot in self.ranks[0] for _, _, micro in slot.parts})


def one_f_one_b(ranks: int, micro_batches: int) -> Schedule:
    """Warm up with as many forward passes as ranks follow, then one backward for each forward pass."""
    _at_least(micro_batches, ranks)
    orders = []
    for rank in range(ranks):
        ahead = ranks - rank
        order = [("F", micro) for micro in range(ahead)]
        for micro in range(micro_batches):
            order.append(("B", micro))
            if micro + ahead < micro_batches:
                order.append(("F", micro + ahead))
        orders.append(tuple(Slot(((what, rank, micro),)) for what, micro in order))
    return Schedule("1F1B", ranks, tuple(orders), 1)


def zero_bubble(ranks: int, micro_batches: int) -> Schedule:
    """1F1B with the backward pass split: rank r puts a weight's gradient off by r micro-batches, to fill the end."""
    _at_least(micro_batches, ranks)
    orders = []
    for rank in range(ranks):
        ahead = ranks - rank
        order = [("F", micro) for micro in range(ahead)]
        for micro in range(micro_batches):
            order.append(("I", micro))
            if micro >= rank:
                order.append(("W", micro - rank))
            if micro + ahead < micro_batches:
                order.append(("F", micro + ahead))
        order += [("W", micro) for micro in range(micro_batches - rank, micro_batches)]
        orders.append(tuple(Slot(((what, rank, micro),)) for what, micro in order))
    return Schedule("ZB1P", ranks, tuple(orders), 1)


def dualpipe(ranks: int, micro_batches: int) -> Schedule:
    """Micro-batches enter at both ends, and each rank has a stage of either direction.

    Raises: ValueError for an odd number of ranks or micro-batches, or fewer than two micro-batches a rank.
    """
    if ranks % 2 or micro_batches % 2:
        raise ValueError(
            f"DualPipe takes an even number of ranks and of micro-batches, not {ranks} and {micro_batches}"
        )
    _at_least(micro_batches, 2 * ranks)
    half = micro_batches // 2
    orders = []
    for rank in range(ranks):
        near = min(rank, ranks - 1 - rank)  # to the end at which its first direction enters
        enters = 0 if rank < ranks // 2 else 1  # the direction whose micro-batches reach this rank first
        stage = {0: rank, 1: ranks - 1 - rank}
        orders.append(_two_ways(ranks, near, half, enters, stage, second_half=half))
    return Schedule("DualPipe", ranks, tuple(orders), 2)


def dualpipe_v(ranks: int, micro_batches: int) -> Schedule:
    """DualPipe folded: the stages go down the ranks and up again, so that one copy of the parameters is enough.

    ranks: devices; there are twice as many stages. Raises: ValueError for fewer than two micro-batches a stage pair.
    """
    _at_least(micro_batches, 2 * ranks)
    orders = []
    for rank in range(ranks):
        stage = {0: rank, 1: 2 * ranks - 1 - rank}
        orders.append(_two_ways(2 * ranks, rank, micro_batches, 0, stage, second_half=0))
    return Schedule("DualPipeV", 2 * ranks, tuple(orders), 1)


SCHEDULES = {"1F1B": one_f_one_b, "ZB1P": zero_bubble, "DualPipe": dualpipe, "DualPipeV": dualpipe_v}


def _two_ways(
    stages: int, near: int, each_way: int, enters: int, stage: dict[int, int], second_half: int
) -> tuple[Slot, ...]:
    """The order of a rank with two stages: `a` whose micro-batches reach it first, and `b`.

    Eight phases: forward passes of a; of both; backward passes of b with the weights apart; the long middle, a forward
    and a backward pass at once, both ways; the forward passes of b run out; backward passes of both; those of a with
    weights put off; and the weights that are left.
    """
    a, b = enters, 1 - enters
    far = stages // 2 - near - 1  # ranks between this one and the middle
    done: Counter[tuple[str, int]] = Counter()
    put_off: list[tuple[str, int, int]] = []

    def part(what: str, way: int) -> tuple[str, int, int]:
        micro = done[what in "IB", way]
        done[what in "IB", way] += 1
        return what, stage[way], micro + way * second_half

    def apart(way: int) -> tuple[str, int, int]:
        found = part("I", way)
        put_off.append(("W", *found[1:]))
        return found

    order: list[tuple[tuple[str, int, int], ...]] = []
    order += [(part("F", a),) for _ in range(2 * far)]
    for _ in range(near + 1):
        order += [(part("F", a),), (part("F", b),)]
    for _ in range(far):
        order += [(apart(b),), (put_off.pop(0),), (part("F", b),)]
    for number in range(each_way - stages + near + 1):
        pair = part("F", a), part("B", b)
        alone = number == 0 and far == 0  # in the middle nothing is on its way yet that the pair could hide
        order += [(pair[0],), (pair[1],)] if alone else [pair]
        order.append((part("F", b), part("B", a)))
    for _ in range(far):
        order += [(part("B", b),), (part("F", b), part("B", a))]
    for number in range(near + 1):  # from the middle of these on, weights wait
        for place, way in enumerate((b, a)):
            late = 2 * number + place > near
            order.append((apart(way) if late else part("B", way),))
    for _ in range(far):
        order += [(put_off.pop(0),), (apart(a),)]
    order += [(weights,) for weights in put_off]
    return tuple(Slot(parts) for parts in order)


def _at_least(micro_batches: int, least: int) -> None:
    if micro_batches < least:
        raise ValueError(f"{micro_batches} micro-batches do not fill the pipeline: it takes {least} or more")

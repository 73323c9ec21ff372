"""09.9: how many pairs each expert has: programs that add to one counter need atomics."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EXAMPLE = [2, 0, 2, -1, 1, 2]
EDGES = [  # pairs, experts, what the ids are like
    (0, 3, "plain"),
    (1, 1, "plain"),
    (256, 5, "plain"),
    (257, 7, "plain"),
    (900, 6, "one"),
    (700, 64, "dropped"),
    (12, 40, "plain"),
    (300, 4, "all dropped"),
]


def inputs(rng, number):
    if number == 0:
        return {"ids_P": torch.tensor(EXAMPLE), "experts": 4}
    if number <= len(EDGES):
        P, E, kind = EDGES[number - 1]
    else:
        P, E, kind = int(rng.integers(300, 1500)), int(rng.integers(2, 65)), str(rng.choice(["plain", "dropped"]))
    ids_P = rng.integers(0, E, size=P)
    if kind == "one":
        ids_P[:] = E - 2
    if kind == "dropped":
        ids_P[rng.random(P) < 0.3] = -1
    if kind == "all dropped":
        ids_P[:] = -1
    return {"ids_P": torch.tensor(ids_P), "experts": E}


def reference(ids_P, experts):
    return (ids_P[:, None] == torch.arange(experts)).long().sum(dim=0)


@triton.jit
def _atomic(ids, counts, P, BLOCK: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + p, mask=p < P)
    tl.atomic_add(counts + expert, 1, mask=(p < P) & (expert >= 0))


def one_atomic_a_pair(ids_P, experts):
    counts_E = torch.zeros(experts, dtype=torch.int64)
    P, BLOCK = len(ids_P), 256
    _atomic[(triton.cdiv(P, BLOCK),)](ids_P, counts_E, P, BLOCK=BLOCK)
    return counts_E


@triton.jit
def _privately(ids, counts, P, E, BLOCK: tl.constexpr, BINS: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    e = tl.arange(0, BINS)
    expert = tl.load(ids + p, mask=p < P, other=-1)
    mine = tl.sum((expert[:, None] == e[None, :]).to(tl.int32), axis=0)
    tl.atomic_add(counts + e, mine.to(tl.int64), mask=(e < E) & (mine > 0))


def counted_in_the_program_first(ids_P, experts):
    counts_E = torch.zeros(experts, dtype=torch.int64)
    P = ids_P.numel()
    _privately[(triton.cdiv(P, 128),)](ids_P, counts_E, P, experts, BLOCK=128, BINS=triton.next_power_of_2(experts))
    return counts_E


@triton.jit
def _an_expert(ids, counts, P, E, BLOCK: tl.constexpr, EACH: tl.constexpr):
    e = tl.program_id(0) * EACH + tl.arange(0, EACH)
    total = tl.zeros([EACH], tl.int64)
    for begin in range(0, P, BLOCK):
        p = begin + tl.arange(0, BLOCK)
        expert = tl.load(ids + p, mask=p < P, other=-1)
        total += tl.sum((expert[None, :] == e[:, None]).to(tl.int64), axis=1)
    tl.store(counts + e, total, mask=e < E)


def each_program_owns_experts(ids_P, experts):
    counts_E = torch.empty(experts, dtype=torch.int64)
    _an_expert[(triton.cdiv(experts, 16),)](ids_P, counts_E, len(ids_P), experts, BLOCK=256, EACH=16)
    return counts_E


@triton.jit
def _read_add_write(ids, counts, P, BLOCK: tl.constexpr):
    for begin in range(0, P, BLOCK):
        p = begin + tl.arange(0, BLOCK)
        expert = tl.load(ids + p, mask=p < P, other=-1)
        tl.store(counts + expert, tl.load(counts + expert, mask=expert >= 0) + 1, mask=expert >= 0)


def read_add_write(ids_P, experts):
    counts_E = torch.zeros(experts, dtype=torch.int64)
    _read_add_write[(1,)](ids_P, counts_E, len(ids_P), BLOCK=256)
    return counts_E


@triton.jit
def _padding(ids, counts, P, BLOCK: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + p, mask=p < P, other=0)
    tl.atomic_add(counts + expert, 1, mask=expert >= 0)


def padding_counted(ids_P, experts):
    counts_E = torch.zeros(experts, dtype=torch.int64)
    P, BLOCK = len(ids_P), 256
    _padding[(triton.cdiv(P, BLOCK),)](ids_P, counts_E, P, BLOCK=BLOCK)
    return counts_E


@triton.jit
def _to_the_first(ids, counts, P, BLOCK: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + p, mask=p < P, other=0)
    tl.atomic_add(counts + tl.maximum(expert, 0), 1, mask=p < P)


def dropped_to_the_first(ids_P, experts):
    counts_E = torch.zeros(experts, dtype=torch.int64)
    P, BLOCK = len(ids_P), 256
    _to_the_first[(triton.cdiv(P, BLOCK),)](ids_P, counts_E, P, BLOCK=BLOCK)
    return counts_E


@triton.jit
def _to_the_last(ids, counts, P, E, BLOCK: tl.constexpr):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(ids + p, mask=p < P, other=0)
    tl.atomic_add(counts + tl.where(expert < 0, expert + E, expert), 1, mask=p < P)


def dropped_to_the_last(ids_P, experts):
    counts_E = torch.zeros(experts, dtype=torch.int64)
    P, BLOCK = len(ids_P), 256
    _to_the_last[(triton.cdiv(P, BLOCK),)](ids_P, counts_E, P, experts, BLOCK=BLOCK)
    return counts_E


def not_zeroed(ids_P, experts):
    counts_E = torch.empty(experts, dtype=torch.int64)
    P, BLOCK = len(ids_P), 256
    _atomic[(triton.cdiv(P, BLOCK),)](ids_P, counts_E, P, BLOCK=BLOCK)
    return counts_E


def counts_in_int32(ids_P, experts):
    counts_E = torch.zeros(experts, dtype=torch.int32)
    P, BLOCK = len(ids_P), 256
    _atomic[(triton.cdiv(P, BLOCK),)](ids_P, counts_E, P, BLOCK=BLOCK)
    return counts_E


def grid_rounded_down(ids_P, experts):
    counts_E = torch.zeros(experts, dtype=torch.int64)
    P, BLOCK = len(ids_P), 256
    _atomic[(P // BLOCK,)](ids_P, counts_E, P, BLOCK=BLOCK)
    return counts_E


def compare(inputs, wanted, got):
    """As `same`, and a word more where every expert that was met has a count of 1, which a race of lanes makes."""
    what = same("counts")(inputs, wanted, got)
    if what is None or wanted.max() < 2 or same()(inputs, wanted.clamp(max=1), got):
        return what
    return f"{what}; lanes that read the same count, add 1 and write it back count once, however many they are"


EXERCISE = Exercise(
    id="09.9",
    unit="09",
    title="counts of expert ids",
    entry="count_experts",
    points=10,
    minutes=15,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "read-add-write",
            read_add_write,
            "It looks like load, add 1, store: lanes with the same expert all read the same count and all write it plus 1, so "
            "that a block adds at most 1. Use tl.atomic_add.",
            seen="triton-lang/triton #558 (a comment in its kernel)",
        ),
        Misconception(
            "padding-counted",
            padding_counted,
            "It looks like lanes past the end that are counted as expert 0. Mask the atomic as well, or load other=-1.",
        ),
        Misconception(
            "dropped-to-the-first",
            dropped_to_the_first,
            "It looks like dropped pairs (-1) counted as expert 0. They belong to no expert: mask them off.",
        ),
        Misconception(
            "dropped-to-the-last",
            dropped_to_the_last,
            "It looks like dropped pairs (-1) counted as the last expert, as Python's negative indices would. They belong to no "
            "expert: mask them off.",
        ),
        Misconception(
            "not-zeroed",
            not_zeroed,
            "It looks like counters that nobody set to zero: torch.empty holds what was there before. Atomics add to what is "
            "there: begin with torch.zeros.",
        ),
        Misconception(
            "counts-in-int32",
            counts_in_int32,
            "It looks like counts in int32. The result is int64.",
        ),
        Misconception(
            "grid-rounded-down",
            grid_rounded_down,
            "It looks like P // BLOCK programs: the pairs of the last, shorter block are not counted. Round up (triton.cdiv).",
        ),
    ),
    alternatives=(one_atomic_a_pair, counted_in_the_program_first, each_program_owns_experts),
    hints=(
        "Two lanes find the same expert. What do they write, if both read, add and write?",
        "tl.atomic_add(pointers, value, mask=...) adds for every lane, one after the other. Which lanes must not take part?",
        "Load a block of ids with other=-1, and let one atomic add 1 at counts + id for the lanes whose id is at least 0. The counts "
        "begin as torch.zeros in int64.",
    ),
    forbids=(
        "torch.bincount",
        "torch.histc",
        "Tensor.bincount",
        "Tensor.histc",
        "Tensor.scatter_add_",
        "Tensor.index_add_",
    ),
    kernel=True,
)

"""11.2: where the pairs go that belong to the experts of this GPU: counts, offsets and stable places, without atomics."""

import torch
import triton
import triton.language as tl

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception
from course.kernels.low_precision import POISON

EDGES = [  # tokens, slots, first expert, experts here, experts in all, what the ids are like
    (0, 2, 0, 3, 3, "plain"),
    (1, 1, 0, 1, 1, "plain"),
    (50, 3, 4, 4, 12, "plain"),  # others' experts before and after
    (40, 4, 0, 5, 5, "one"),  # all rows go to one expert
    (20, 2, 8, 40, 64, "plain"),  # many experts without rows
    (30, 2, 2, 3, 6, "elsewhere"),  # nothing is ours
    (85, 3, POISON, 3, POISON + 5, "far"),  # masked lanes look like the first expert here: who counts them shows it
]

COUNTING = (
    *("sort", "argsort", "msort", "topk", "bincount", "histc", "histogram", "unique", "cumsum", "cumsum_", "sum"),
    *("count_nonzero", "searchsorted", "bucketize", "scatter", "scatter_", "scatter_add", "scatter_add_", "index_add"),
    *("index_add_", "index_put", "index_put_", "nonzero"),
)  # what PyTorch must not do


def inputs(rng, number):
    if number == 0:
        ids = [[4, 2], [3, 4], [-1, 5], [4, 3]]
        return {"ids_TK": torch.tensor(ids), "first": 3, "held": 2}
    if number <= len(EDGES):
        T, K, first, held, E, kind = EDGES[number - 1]
    else:
        T, K, held = (int(rng.integers(low, high)) for low, high in ((20, 90), (1, 6), (2, 20)))
        first, kind = int(rng.integers(0, 9)), "plain"
        E = first + held + int(rng.integers(0, 9))
    ids_TK = rng.integers(first - 2 if kind == "far" else 0, E, size=(T, K))
    if kind == "one":
        ids_TK[:] = first + held - 2
    if kind == "elsewhere":
        ids_TK = rng.choice([*range(first), *range(first + held, E)], size=(T, K))
    if kind in ("plain", "far") and T > 1:
        ids_TK[rng.random((T, K)) < 0.1] = -1
    return {"ids_TK": torch.tensor(ids_TK), "first": first, "held": held}


def reference(ids_TK, first, held):
    own = [int(expert) - first for expert in ids_TK.flatten()]
    counts = [own.count(expert) for expert in range(held)]
    offsets = [sum(counts[:expert]) for expert in range(held + 1)]
    following, places = list(offsets), []
    for expert in own:
        ours = 0 <= expert < held
        places.append(following[expert] if ours else -1)
        if ours:
            following[expert] += 1
    return torch.tensor(counts), torch.tensor(offsets), torch.tensor(places, dtype=torch.int64).view_as(ids_TK)


@triton.jit
def _count(ids, table, P, first, held, SPAN: tl.constexpr, BINS: tl.constexpr):
    span = tl.program_id(0).to(tl.int64)
    p = span * SPAN + tl.arange(0, SPAN)
    e = tl.arange(0, BINS)
    own = tl.load(ids + p, mask=p < P, other=-1) - first
    hits = (own[:, None] == e[None, :]).to(tl.int64)
    tl.store(table + span * held + e, tl.sum(hits, axis=0), mask=e < held)


@triton.jit
def _add_up(table, counts, offsets, spans, held, BINS: tl.constexpr):
    e = tl.arange(0, BINS)
    total = tl.zeros([BINS], tl.int64)
    for span in range(0, spans):
        here = tl.load(table + span * held + e, mask=e < held)
        tl.store(table + span * held + e, total, mask=e < held)
        total += here
    tl.store(counts + e, total, mask=e < held)
    tl.store(offsets + 1 + e, tl.cumsum(total), mask=e < held)


@triton.jit
def _place(ids, table, offsets, places, P, first, held, SPAN: tl.constexpr, BINS: tl.constexpr):
    span = tl.program_id(0).to(tl.int64)
    p = span * SPAN + tl.arange(0, SPAN)
    e = tl.arange(0, BINS)
    own = tl.load(ids + p, mask=p < P) - first
    hits = ((own[:, None] == e[None, :]) & (e[None, :] < held)).to(tl.int64)
    before = tl.load(offsets + e, mask=e < held) + tl.load(table + span * held + e, mask=e < held)
    place = tl.sum(hits * (before[None, :] + tl.cumsum(hits)), axis=1) - 1
    tl.store(places + p, place, mask=p < P)


def spans_in_three_launches(ids_TK, first, held):
    P, SPAN, BINS = ids_TK.numel(), 64, triton.next_power_of_2(held)
    spans = triton.cdiv(P, SPAN)
    table_SE = torch.empty(spans * held, dtype=torch.int64)
    counts_E, offsets_E1 = torch.empty(held, dtype=torch.int64), torch.zeros(held + 1, dtype=torch.int64)
    places_TK = torch.empty_like(ids_TK)
    _count[(spans,)](ids_TK, table_SE, P, first, held, SPAN=SPAN, BINS=BINS)
    _add_up[(1,)](table_SE, counts_E, offsets_E1, spans, held, BINS=BINS)
    _place[(spans,)](ids_TK, table_SE, offsets_E1, places_TK, P, first, held, SPAN=SPAN, BINS=BINS)
    return counts_E, offsets_E1, places_TK


@triton.jit
def _count_own(ids, counts, P, first, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.int64)
    for begin in range(0, P, BLOCK):
        p = begin + tl.arange(0, BLOCK)
        total += (tl.load(ids + p, mask=p < P, other=-1) == first + tl.program_id(0)).to(tl.int64)
    tl.store(counts + tl.program_id(0), tl.sum(total))


@triton.jit
def _place_own(ids, counts, offsets, places, P, first, held, BLOCK: tl.constexpr, BINS: tl.constexpr):
    expert, e = tl.program_id(0), tl.arange(0, BINS)
    counted = tl.load(counts + e, mask=e < held, other=0)
    place = tl.sum(tl.where(e < expert, counted, 0))
    tl.store(offsets + expert + 1, tl.sum(tl.where(e <= expert, counted, 0)))
    for begin in range(0, P, BLOCK):
        p = begin + tl.arange(0, BLOCK)
        own = tl.load(ids + p, mask=p < P, other=-1) == first + expert
        rank = tl.cumsum(own.to(tl.int64)) - 1
        tl.store(places + p, place + rank, mask=own & (p < P))
        place += tl.sum(own.to(tl.int64))


def one_program_an_expert(ids_TK, first, held):
    counts_E = torch.zeros(held, dtype=torch.int64)
    offsets_E1, places_TK = torch.zeros(held + 1, dtype=torch.int64), torch.full_like(ids_TK, -1)
    P = ids_TK.numel()
    if P:
        _count_own[(held,)](ids_TK, counts_E, P, first, BLOCK=128)
        _place_own[(held,)](
            ids_TK, counts_E, offsets_E1, places_TK, P, first, held, BLOCK=128, BINS=triton.next_power_of_2(held)
        )
    return counts_E, offsets_E1, places_TK


@triton.jit
def _faulty(ids, counts, offsets, places, T, K, P, first, held, FAULT: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr):  # fmt: skip
    e = tl.arange(0, BINS)
    if FAULT == 3:  # 3: global ids taken as local
        first = 0
    total = tl.zeros([BINS], tl.int64)
    for begin in range(0, P, BLOCK):
        p = begin + tl.arange(0, BLOCK)
        own = tl.load(ids + p, mask=p < P, other=-1) - first
        if FAULT == 7:  # 7: masked lanes are compared, whatever they hold
            own = tl.load(ids + p, mask=p < P) - first
        hits = ((own[:, None] == e[None, :]) & (e < held)[None, :]).to(tl.int64)
        if FAULT == 1:  # 1: lanes of a block overwrite each other's count
            hits = tl.max(hits, axis=0)
            total += hits
        else:
            total += tl.sum(hits, axis=0)
    ends = tl.cumsum(total)
    starts = ends - total
    tl.store(counts + e, total, mask=e < held)
    if FAULT == 2:  # 2: inclusive offsets
        tl.store(offsets + e, ends, mask=e < held)
        tl.store(offsets + held, tl.sum(total))
    else:
        tl.store(offsets + e + 1, ends, mask=e < held)
    seen = tl.zeros([BINS], tl.int64)
    lost = tl.sum(total)
    for begin in range(0, P, BLOCK):
        p = begin + tl.arange(0, BLOCK)
        at = p
        if FAULT == 4:  # 4: slot after slot
            at = p % T * K + p // T
        own = tl.load(ids + at, mask=p < P, other=-1) - first
        ours = (own >= 0) & (own < held)
        hits = (own[:, None] == e[None, :]).to(tl.int64)
        if FAULT == 5:  # 5: ranks begin anew in each block
            seen = tl.zeros([BINS], tl.int64)
        place = tl.sum(hits * (starts + seen + tl.cumsum(hits, axis=0))[:, :], axis=1) - 1
        seen += tl.sum(hits, axis=0)
        if FAULT == 6:  # 6: dropped pairs behind the last expert
            dropped = ((own < 0) | (own >= held)) & (p < P)
            place = tl.where(ours, place, lost + tl.cumsum(dropped.to(tl.int64)) - 1)
            lost += tl.sum(dropped.to(tl.int64))
        else:
            place = tl.where(ours, place, -1)
        tl.store(places + at, place, mask=p < P)


def lanes_overwrite(ids_TK, first, held):
    (T, K), P = ids_TK.shape, ids_TK.numel()
    counts_E, offsets_E1 = ids_TK.new_zeros(held), ids_TK.new_zeros(held + 1)
    places_TK, BINS = torch.empty_like(ids_TK), triton.next_power_of_2(held)
    _faulty[(1,)](ids_TK, counts_E, offsets_E1, places_TK, T, K, P, first, held, FAULT=1, BLOCK=64, BINS=BINS)
    return counts_E, offsets_E1, places_TK


def inclusive_offsets(ids_TK, first, held):
    (T, K), P = ids_TK.shape, ids_TK.numel()
    counts_E, offsets_E1 = ids_TK.new_zeros(held), ids_TK.new_zeros(held + 1)
    places_TK, BINS = torch.empty_like(ids_TK), triton.next_power_of_2(held)
    _faulty[(1,)](ids_TK, counts_E, offsets_E1, places_TK, T, K, P, first, held, FAULT=2, BLOCK=64, BINS=BINS)
    return counts_E, offsets_E1, places_TK


def global_ids(ids_TK, first, held):
    (T, K), P = ids_TK.shape, ids_TK.numel()
    counts_E, offsets_E1 = ids_TK.new_zeros(held), ids_TK.new_zeros(held + 1)
    places_TK, BINS = torch.empty_like(ids_TK), triton.next_power_of_2(held)
    _faulty[(1,)](ids_TK, counts_E, offsets_E1, places_TK, T, K, P, first, held, FAULT=3, BLOCK=64, BINS=BINS)
    return counts_E, offsets_E1, places_TK


def slot_after_slot(ids_TK, first, held):
    (T, K), P = ids_TK.shape, ids_TK.numel()
    counts_E, offsets_E1 = ids_TK.new_zeros(held), ids_TK.new_zeros(held + 1)
    places_TK, BINS = torch.empty_like(ids_TK), triton.next_power_of_2(held)
    _faulty[(1,)](ids_TK, counts_E, offsets_E1, places_TK, T, K, P, first, held, FAULT=4, BLOCK=64, BINS=BINS)
    return counts_E, offsets_E1, places_TK


def ranks_begin_anew(ids_TK, first, held):
    (T, K), P = ids_TK.shape, ids_TK.numel()
    counts_E, offsets_E1 = ids_TK.new_zeros(held), ids_TK.new_zeros(held + 1)
    places_TK, BINS = torch.empty_like(ids_TK), triton.next_power_of_2(held)
    _faulty[(1,)](ids_TK, counts_E, offsets_E1, places_TK, T, K, P, first, held, FAULT=5, BLOCK=64, BINS=BINS)
    return counts_E, offsets_E1, places_TK


def dropped_at_the_end(ids_TK, first, held):
    (T, K), P = ids_TK.shape, ids_TK.numel()
    counts_E, offsets_E1 = ids_TK.new_zeros(held), ids_TK.new_zeros(held + 1)
    places_TK, BINS = torch.empty_like(ids_TK), triton.next_power_of_2(held)
    _faulty[(1,)](ids_TK, counts_E, offsets_E1, places_TK, T, K, P, first, held, FAULT=6, BLOCK=64, BINS=BINS)
    return counts_E, offsets_E1, places_TK


def masked_lanes_counted(ids_TK, first, held):
    (T, K), P = ids_TK.shape, ids_TK.numel()
    counts_E, offsets_E1 = ids_TK.new_zeros(held), ids_TK.new_zeros(held + 1)
    places_TK, BINS = torch.empty_like(ids_TK), triton.next_power_of_2(held)
    _faulty[(1,)](ids_TK, counts_E, offsets_E1, places_TK, T, K, P, first, held, FAULT=7, BLOCK=64, BINS=BINS)
    return counts_E, offsets_E1, places_TK


def in_int32(ids_TK, first, held):
    (T, K), P = ids_TK.shape, ids_TK.numel()
    counts_E, offsets_E1 = torch.zeros(held, dtype=torch.int32), torch.zeros(held + 1, dtype=torch.int32)
    places_TK, BINS = torch.empty_like(ids_TK, dtype=torch.int32), triton.next_power_of_2(held)
    _faulty[(1,)](ids_TK, counts_E, offsets_E1, places_TK, T, K, P, first, held, FAULT=0, BLOCK=64, BINS=BINS)
    return counts_E, offsets_E1, places_TK


EXERCISE = Exercise(
    id="11.2",
    unit="11",
    title="counts, offsets and places",
    entry="expert_places",
    points=15,
    minutes=50,
    difficulty=4,
    spine=True,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("counts", "offsets", "places"),
    misconceptions=(
        Misconception(
            "lanes-overwrite",
            lanes_overwrite,
            "It looks like load, add 1, store: lanes of a block that have the same expert all write the same count plus 1. Compare "
            "the block with all experts, and add the hits up.",
            seen="triton-lang/triton #558 (a comment in its kernel)",
        ),
        Misconception(
            "inclusive-offsets",
            inclusive_offsets,
            "It looks like inclusive offsets. offsets[e] is where expert e begins: the pairs of all experts before it, without its own.",
        ),
        Misconception(
            "global-ids",
            global_ids,
            "It looks like ids taken as numbers of this GPU's experts. The experts here are first, first + 1, ...: subtract first.",
        ),
        Misconception(
            "slot-after-slot",
            slot_after_slot,
            "It looks like pairs ordered by slot and then by token. Within an expert pairs stand as they lie in memory: by token, "
            "then by slot.",
        ),
        Misconception(
            "ranks-begin-anew",
            ranks_begin_anew,
            "It looks like ranks that begin anew in each block, so that pairs of one expert share a place. A block has to know "
            "how many of its expert's pairs the blocks before it have.",
        ),
        Misconception(
            "dropped-at-the-end",
            dropped_at_the_end,
            "It looks like places behind the last expert for pairs that are not ours. Nothing here computes them: their place is -1.",
        ),
        Misconception(
            "masked-lanes-counted",
            masked_lanes_counted,
            "It looks like ids loaded without `other`: lanes behind the last pair hold whatever was there, and where that is an "
            "expert's number they are counted. Give a number that is no expert's, or leave those lanes out of the count.",
        ),
        Misconception(
            "int32",
            in_int32,
            "It looks like results in int32. A place times a row's width soon passes 2^31: counts, offsets and places are int64.",
        ),
    ),
    alternatives=(spans_in_three_launches, one_program_an_expert),
    hints=(
        "A pair's place is the sum of three numbers. Which of them can a program know by itself?",
        "Pairs of lower experts, pairs of the same expert in earlier blocks, and those earlier in the same block. Let one launch count, "
        "a second one add up, and a third one place; or let a program own an expert, and walk over all pairs twice.",
        "Compare a block of ids with all experts, [SPAN, BINS]: the sum down the columns counts, a cumulative sum down the columns "
        "ranks. A table with a row for each block, turned into running sums by a single program, says what came before.",
    ),
    forbids=(
        *(f"triton.language.atomic_{name}" for name in ("add", "max", "min", "xchg", "cas", "and", "or", "xor")),
        *(f"{of}.{name}" for of in ("torch", "Tensor") for name in COUNTING),
        "torch.nn.functional.one_hot",
    ),
    kernel=True,
    tags=("only kernels read",),
)

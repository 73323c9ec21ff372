"""08.2: the least time of work that runs one piece after the other, and what bounds each piece."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

H800 = {"bf16": 990e12, "fp8": 1978.9e12}, 3.35e12  # GPUS["h800"] has them with their sources
POWERS = {"bf16": 2.0**10, "fp8": 2.0**11, "fp32": 2.0**6}, 2.0**3  # ties are exact with powers of two
EDGES = [  # work, roofs and bandwidth
    ([[2**16, 2**9, "bf16"], [2**17, 2**9, "fp8"], [2**17, 2**9, "bf16"]], *POWERS),  # two ties
    ([], *H800),  # no work, no time
    ([[0, 0, "bf16"]], *H800),
    ([[10**12, 0, "fp8"], [0, 10**10, "bf16"], [10**12, 10**9, "bf16"]], *H800),  # nothing moves; nothing is computed
    ([[10**15, 10**12, "fp8"], [10**15, 10**12, "bf16"], [10**15, 10**10, "fp8"]], *H800),  # same work, other roofs
    ([[3 * 2**20, 2**9, "fp32"], [2**12, 2**20, "fp8"], [2**24, 2**9, "fp8"]], *POWERS),  # the narrow format's turn
    ([[7 * 10**9, 10**12, "bf16"], [9 * 10**9, 10**11, "fp8"]], *H800),  # memory alone
    ([[10**9, 10**3, "fp8"], [2 * 10**9, 10**4, "fp8"], [5, 1, "bf16"]], *H800),
    ([[2000, 0, "bf16"]], {"bf16": 1e15}, 2e12),  # 2e-12 s are little, and not nothing
]


def inputs(rng, number):
    """Beyond the exact ties no piece lies so near to its ridge that rounding decides."""
    if number == 0:  # the example of the text
        work = [[8e12, 1e9, "bf16"], [1e12, 4e9, "fp8"], [4e12, 8e9, "fp8"]]
        return {"work": work, "roofs": {"bf16": 1e15, "fp8": 2e15}, "bandwidth": 2e12}
    if number <= len(EDGES):
        work, roofs, bandwidth = EDGES[number - 1]
        return {"work": [list(piece) for piece in work], "roofs": dict(roofs), "bandwidth": bandwidth}
    roofs = {name: float(rng.uniform(50, 3000)) * 1e12 for name in ("fp32", "bf16", "fp8", "fp4")}
    bandwidth, work = float(rng.uniform(1, 8)) * 1e12, []
    for _ in range(int(rng.integers(2, 12))):
        dtype, moved = str(rng.choice(list(roofs))), int(rng.integers(1, 10**11))
        away = float(rng.choice([rng.uniform(0.02, 0.95), rng.uniform(1.05, 20)]))  # from the ridge
        work.append([int(away * moved * roofs[dtype] / bandwidth) + 1, moved + 1, dtype])
    return {"work": work, "roofs": roofs, "bandwidth": bandwidth}


def reference(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
            computing += compute
        else:
            times.append(memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / total if total else 0.0


def with_tensors(work, roofs, bandwidth):
    both_N2 = torch.zeros(len(work), 2, dtype=torch.float64)
    for place, (flops, moved, dtype) in enumerate(work):
        both_N2[place] = torch.tensor([moved / bandwidth, flops / roofs[dtype]], dtype=torch.float64)
    times_N = both_N2.amax(dim=1)
    bound_N = both_N2[:, 1] > both_N2[:, 0]
    total = times_N.sum().item()
    share = times_N[bound_N].sum().item() / total if total > 0 else 0.0
    return times_N.tolist(), ["compute" if bound else "memory" for bound in bound_N.tolist()], total, share


def maximum_of_sums(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
            computing += compute
        else:
            times.append(memory)
            by.append("memory")
    total = max(sum(f / roofs[d] for f, _, d in work), sum(m / bandwidth for _, m, _ in work))
    return times, by, total, computing / total if total else 0.0


def pieces_merged(work, roofs, bandwidth):
    times, by, sums = [], [], {}
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        times.append(compute if compute > memory else memory)
        by.append("compute" if compute > memory else "memory")
        before = sums.get(dtype, (0.0, 0.0))
        sums[dtype] = before[0] + compute, before[1] + memory
    total = sum(max(both) for both in sums.values())
    computing = sum(compute for compute, memory in sums.values() if compute > memory)
    return times, by, total, computing / total if total else 0.0


def no_overlap(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute > memory:
            times.append(compute + memory)
            by.append("compute")
            computing += compute + memory
        else:
            times.append(compute + memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / total if total else 0.0


def the_shorter(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute < memory:
            times.append(compute)
            by.append("compute")
            computing += compute
        else:
            times.append(memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / total if total else 0.0


def tie_to_compute(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute >= memory:
            times.append(compute)
            by.append("compute")
            computing += compute
        else:
            times.append(memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / total if total else 0.0


def one_roof_for_all(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, _ in work:
        compute, memory = flops / max(roofs.values()), moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
            computing += compute
        else:
            times.append(memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / total if total else 0.0


def first_roof(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, _ in work:
        compute, memory = flops / next(iter(roofs.values())), moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
            computing += compute
        else:
            times.append(memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / total if total else 0.0


def share_of_pieces(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
            computing += compute
        else:
            times.append(memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, by.count("compute") / len(by) if total else 0.0


def all_arithmetic(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
        else:
            times.append(memory)
            by.append("memory")
        computing += compute
        total += times[-1]
    return times, by, total, computing / total if total else 0.0


def share_of_flops(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
            computing += flops
        else:
            times.append(memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / sum(piece[0] for piece in work) if computing else 0.0


def share_of_memory(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
        else:
            times.append(memory)
            computing += memory
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / total if total else 0.0


def idle_share_is_one(work, roofs, bandwidth):
    times, by, computing, total = [], [], 0.0, 0.0
    for flops, moved, dtype in work:
        compute, memory = flops / roofs[dtype], moved / bandwidth
        if compute > memory:
            times.append(compute)
            by.append("compute")
            computing += compute
        else:
            times.append(memory)
            by.append("memory")
        total += times[-1]
    return times, by, total, computing / total if total else 1.0


EXERCISE = Exercise(
    id="08.2",
    unit="08",
    title="the least time",
    entry="least_time",
    points=10,
    minutes=15,
    difficulty=2,
    spine=False,
    cases=13,
    inputs=inputs,
    reference=reference,
    compare=same("times", "by", "total", "share", rtol=1e-9),
    misconceptions=(
        Misconception(
            "maximum-of-sums",
            maximum_of_sums,
            "It looks like the maximum of two sums. One piece runs after the other, and the memory that waits "
            "in one cannot help another: the total is the sum of maxima.",
        ),
        Misconception(
            "pieces-merged",
            pieces_merged,
            "It looks like work of one dtype thrown together before the maximum. Each piece runs by itself: "
            "take its maximum first, then add.",
        ),
        Misconception(
            "no-overlap",
            no_overlap,
            "It looks like the sum of computing and moving. A roofline lets both go on at once: a piece takes "
            "the longer of the two.",
        ),
        Misconception(
            "the-shorter",
            the_shorter,
            "It looks like the shorter of the two times. The slower side is the bound.",
        ),
        Misconception(
            "tie-to-compute",
            tie_to_compute,
            "It looks like a tie that counts as compute. At the ridge, where both take equally long, this "
            "exercise says memory.",
        ),
        Misconception(
            "one-roof-for-all",
            one_roof_for_all,
            "It looks like one roof for every dtype, the highest. FP8 has about twice the roof of BF16: look "
            "each piece's roof up.",
        ),
        Misconception(
            "first-roof",
            first_roof,
            "It looks like the first roof for every dtype. Each piece of work names the format whose roof it has.",
        ),
        Misconception(
            "share-of-pieces",
            share_of_pieces,
            "It looks like a share of the pieces. Wanted is a share of the time: a long piece counts for more "
            "than a short one.",
        ),
        Misconception(
            "all-arithmetic",
            all_arithmetic,
            "It looks like the time that all arithmetic takes. Count only pieces which compute bounds; in the "
            "others the tensor cores wait.",
        ),
        Misconception(
            "share-of-flops",
            share_of_flops,
            "It looks like a share of the FLOPs. Wanted is a share of the time.",
        ),
        Misconception(
            "share-of-memory",
            share_of_memory,
            "It looks like the share of time that memory bounds. Wanted is the other one: of the tensor cores.",
        ),
        Misconception(
            "idle-share-is-one",
            idle_share_is_one,
            "It looks like a share of 1 where there is no time at all. With nothing to do the share is 0.",
        ),
    ),
    alternatives=(with_tensors,),
    hints=(
        "Two clocks run for each piece of work: one for its FLOPs, one for its bytes.",
        "A piece takes the longer of its two times. The total adds up what the pieces take, one after the other.",
        "Keep a second sum, of the times of those pieces whose FLOPs take strictly longer than their bytes; "
        "divide it by the total, and mind a total of 0.",
    ),
)

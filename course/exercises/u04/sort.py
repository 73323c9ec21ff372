"""04.3: line the pairs up by expert with a counting sort, as a GPU does it."""

import torch
import torch.nn.functional as F

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [(1, 1, 1), (4, 5, 2), (6, 8, 2), (5, 3, 3)]  # tokens, experts, k


def inputs(rng, number):
    T, E, K = EDGES[number] if number < len(EDGES) else (int(rng.integers(2, 40)), int(rng.integers(2, 12)), 0)
    K = K or int(rng.integers(2, min(E, 4) + 1))
    rows = rng.permuted([list(range(E))] * T, axis=1)[:, :K]
    if number == 2:
        rows = rows % 4 + 2 * (rows // 4)  # the last experts and some in between get nothing
    return {"indices_TK": torch.tensor(rows), "experts": E}


def reference(indices_TK, experts):
    flat_P = indices_TK.flatten()
    seen_PE = F.one_hot(flat_P, experts)
    counts_E = seen_PE.sum(0)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    rank_P = (seen_PE.cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    place_P = offsets_E1[flat_P] + rank_P
    order_P = torch.empty_like(place_P)
    order_P[place_P] = torch.arange(len(place_P))
    return order_P, offsets_E1, place_P


def with_lists(indices_TK, experts):
    buckets = [[] for _ in range(experts)]
    for pair, e in enumerate(indices_TK.flatten().tolist()):
        buckets[e].append(pair)
    offsets = [0]
    for bucket in buckets:
        offsets.append(offsets[-1] + len(bucket))
    order = [pair for bucket in buckets for pair in bucket]
    place = [0] * len(order)
    for row, pair in enumerate(order):
        place[pair] = row
    return torch.tensor(order), torch.tensor(offsets), torch.tensor(place)


def sorts_tokens(indices_TK, experts):
    flat_P = indices_TK.flatten()
    seen_PE = F.one_hot(flat_P, experts)
    counts_E = seen_PE.sum(0)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    place_P = offsets_E1[flat_P] + (seen_PE.cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    order_P = torch.empty_like(place_P)
    order_P[place_P] = torch.arange(len(place_P)) // indices_TK.shape[1]
    return order_P, offsets_E1, place_P


def inclusive_offsets(indices_TK, experts):
    flat_P = indices_TK.flatten()
    seen_PE = F.one_hot(flat_P, experts)
    counts_E = seen_PE.sum(0)
    starts_E = counts_E.cumsum(0) - counts_E
    place_P = starts_E[flat_P] + (seen_PE.cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    order_P = torch.empty_like(place_P)
    order_P[place_P] = torch.arange(len(place_P))
    ends_E = counts_E.cumsum(0)
    return order_P, torch.cat([ends_E, ends_E[-1:]]), place_P


def counts_for_offsets(indices_TK, experts):
    flat_P = indices_TK.flatten()
    seen_PE = F.one_hot(flat_P, experts)
    counts_E = seen_PE.sum(0)
    starts_E = counts_E.cumsum(0) - counts_E
    place_P = starts_E[flat_P] + (seen_PE.cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    order_P = torch.empty_like(place_P)
    order_P[place_P] = torch.arange(len(place_P))
    return order_P, torch.cat([counts_E.new_zeros(1), counts_E]), place_P


def place_is_order(indices_TK, experts):
    flat_P = indices_TK.flatten()
    seen_PE = F.one_hot(flat_P, experts)
    counts_E = seen_PE.sum(0)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    place_P = offsets_E1[flat_P] + (seen_PE.cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    order_P = torch.empty_like(place_P)
    order_P[place_P] = torch.arange(len(place_P))
    return order_P, offsets_E1, order_P.clone()


def swapped(indices_TK, experts):
    flat_P = indices_TK.flatten()
    seen_PE = F.one_hot(flat_P, experts)
    counts_E = seen_PE.sum(0)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    place_P = offsets_E1[flat_P] + (seen_PE.cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    order_P = torch.empty_like(place_P)
    order_P[place_P] = torch.arange(len(place_P))
    return place_P, offsets_E1, order_P


def slots_first(indices_TK, experts):
    flat_P = indices_TK.T.flatten()
    seen_PE = F.one_hot(flat_P, experts)
    counts_E = seen_PE.sum(0)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    place_P = offsets_E1[flat_P] + (seen_PE.cumsum(0) - 1).gather(1, flat_P[:, None]).squeeze(1)
    order_P = torch.empty_like(place_P)
    order_P[place_P] = torch.arange(len(place_P))
    return order_P, offsets_E1, place_P


def last_come_first(indices_TK, experts):
    flat_P = indices_TK.flatten()
    seen_PE = F.one_hot(flat_P, experts)
    counts_E = seen_PE.sum(0)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    place_P = offsets_E1[flat_P + 1] - seen_PE.cumsum(0).gather(1, flat_P[:, None]).squeeze(1)
    order_P = torch.empty_like(place_P)
    order_P[place_P] = torch.arange(len(place_P))
    return order_P, offsets_E1, place_P


EXERCISE = Exercise(
    id="04.3",
    unit="04",
    title="sort by expert",
    entry="sort_by_expert",
    points=15,
    minutes=30,
    difficulty=3,
    spine=True,
    inputs=inputs,
    cases=6,
    reference=reference,
    compare=same("order", "offsets", "place"),
    misconceptions=(
        Misconception(
            "sorts-tokens",
            sorts_tokens,
            "It looks like tokens in `order` where pairs are meant. With k experts a token visits k times: "
            "pair p = token * k + slot.",
        ),
        Misconception(
            "inclusive-offsets",
            inclusive_offsets,
            "It looks like offsets that say where an expert's rows end. offsets[e] is where they begin, and offsets[0] is 0.",
        ),
        Misconception(
            "counts-for-offsets",
            counts_for_offsets,
            "It looks like counts where running totals are meant: offsets[e] is the number of rows of all experts before e.",
        ),
        Misconception(
            "place-is-order",
            place_is_order,
            "It looks like `order` returned as `place`. They are inverse to each other: place[order[r]] == r.",
        ),
        Misconception(
            "swapped",
            swapped,
            "It looks like `order` and `place` in each other's places. order[r] is a pair, place[p] is a row.",
        ),
        Misconception(
            "slots-first",
            slots_first,
            "It looks like pairs counted slot by slot. Pair p = token * k + slot: the row-major order of indices_TK.",
        ),
        Misconception(
            "not-stable",
            last_come_first,
            "It looks like each expert's rows in reverse. The sort is stable: within an expert, earlier pairs come first.",
        ),
    ),
    alternatives=(with_lists,),
    hints=(
        "Three steps: how many pairs has each expert, where does each expert begin, which place does each pair take?",
        "A pair's place is its expert's beginning plus the number of earlier pairs of the same expert.",
        "one_hot of the flat indices, cumsum over the pairs, minus one, gathered at the expert: the rank of each pair.",
    ),
    forbids=(
        "sorted",
        *(f"{owner}.{name}" for owner in ("torch", "Tensor") for name in ("sort", "argsort", "msort", "topk")),
        *(f"numpy.{name}" for name in ("sort", "argsort", "lexsort", "argpartition")),
    ),
)

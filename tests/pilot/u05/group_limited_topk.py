"""05.9, a pilot of 05.2: which k experts a token uses when only the best groups are open to it (DeepSeek-V3 report, 2.1.2)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # tokens, experts, groups, keep, k, quantised scores, shift of the bias
    (1, 4, 2, 1, 2, False, 0.0),
    (5, 6, 6, 3, 2, False, 0.0),  # groups of a single expert
    (7, 16, 4, 2, 4, True, 0.0),
    (9, 16, 4, 2, 4, False, -2.0),
    (9, 64, 32, 8, 6, True, 0.0),  # past 16 entries a sort that is not stable moves ties
]


def inputs(rng, number):
    if number < len(EDGES):
        T, E, groups, keep, k, quantised, shift = EDGES[number]
    else:
        groups = int(rng.choice([2, 4, 8]))
        each, keep = int(rng.integers(2, 7)), int(rng.integers(1, groups))
        T, E, k = int(rng.integers(3, 30)), groups * each, int(rng.integers(1, min(keep * each, 8) + 1))
        quantised, shift = bool(rng.integers(2)), float(rng.choice([-2.0, 0.0, 0.5]))
    scores = rng.uniform(size=(T, E))
    bias = rng.uniform(-0.5, 0.5, size=E) + shift
    if quantised:
        scores, bias = scores.round(1) // 0.125 * 0.125, bias // 0.25 * 0.25
    return {
        "scores_TE": torch.tensor(scores, dtype=torch.float32),
        "bias_E": torch.tensor(bias, dtype=torch.float32),
        "groups": groups,
        "keep": keep,
        "k": k,
    }


def reference(scores_TE, bias_E, groups, keep, k):
    T, E = scores_TE.shape
    choice_TE = scores_TE + bias_E
    choice_TGe = choice_TE.view(T, groups, E // groups)
    rank_TG = choice_TGe.topk(min(2, E // groups), dim=-1).values.sum(-1)
    best_TG = rank_TG.sort(dim=-1, descending=True, stable=True).indices[:, :keep]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, best_TG, True)
    open_TE = open_TG.repeat_interleave(E // groups, dim=1)
    masked_TE = choice_TE.masked_fill(~open_TE, -torch.inf)
    return masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def by_sorting_lists(scores_TE, bias_E, groups, keep, k):
    E = len(bias_E)
    rows = []
    for scores in (scores_TE + bias_E).tolist():
        each = E // groups
        rank = [sum(sorted(scores[g * each : (g + 1) * each])[-2:]) for g in range(groups)]
        kept = sorted(range(groups), key=lambda g: (-rank[g], g))[:keep]
        experts = [e for e in range(E) if e // each in kept]
        rows.append(sorted(experts, key=lambda e: (-scores[e], e))[:k])
    return torch.tensor(rows)


def single_best(scores_TE, bias_E, groups, keep, k):
    T, E = scores_TE.shape
    choice_TE = scores_TE + bias_E
    rank_TG = choice_TE.view(T, groups, E // groups).amax(-1)
    best_TG = rank_TG.sort(dim=-1, descending=True, stable=True).indices[:, :keep]
    open_TE = torch.zeros(T, groups, dtype=torch.bool).scatter(1, best_TG, True).repeat_interleave(E // groups, dim=1)
    return choice_TE.masked_fill(~open_TE, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, :k]


def zero_filled(scores_TE, bias_E, groups, keep, k):
    T, E = scores_TE.shape
    choice_TE = scores_TE + bias_E
    rank_TG = choice_TE.view(T, groups, E // groups).topk(min(2, E // groups), dim=-1).values.sum(-1)
    best_TG = rank_TG.sort(dim=-1, descending=True, stable=True).indices[:, :keep]
    open_TE = torch.zeros(T, groups, dtype=torch.bool).scatter(1, best_TG, True).repeat_interleave(E // groups, dim=1)
    return choice_TE.masked_fill(~open_TE, 0.0).sort(dim=-1, descending=True, stable=True).indices[:, :k]


def without_bias(scores_TE, bias_E, groups, keep, k):
    T, E = scores_TE.shape
    rank_TG = scores_TE.view(T, groups, E // groups).topk(min(2, E // groups), dim=-1).values.sum(-1)
    best_TG = rank_TG.sort(dim=-1, descending=True, stable=True).indices[:, :keep]
    open_TE = torch.zeros(T, groups, dtype=torch.bool).scatter(1, best_TG, True).repeat_interleave(E // groups, dim=1)
    return scores_TE.masked_fill(~open_TE, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[:, :k]


def without_groups(scores_TE, bias_E, groups, keep, k):
    return (scores_TE + bias_E).sort(dim=-1, descending=True, stable=True).indices[:, :k]


def local_indices(scores_TE, bias_E, groups, keep, k):
    T, E = scores_TE.shape
    each = E // groups
    choice_TGe = (scores_TE + bias_E).view(T, groups, each)
    rank_TG = choice_TGe.topk(min(2, each), dim=-1).values.sum(-1)
    best_TG = rank_TG.sort(dim=-1, descending=True, stable=True).indices[:, :keep]
    kept_TGe = choice_TGe.gather(1, best_TG[..., None].expand(-1, -1, each))
    return kept_TGe.flatten(1).sort(dim=-1, descending=True, stable=True).indices[:, :k]


EXERCISE = Exercise(
    id="05.9",
    unit="05",
    title="group-limited top-k",
    entry="group_limited_topk",
    points=10,
    minutes=25,
    difficulty=3,
    spine=True,
    inputs=inputs,
    cases=8,
    reference=reference,
    compare=same("indices"),
    misconceptions=(
        Misconception(
            "single-best",
            single_best,
            "It looks like groups ranked by their single best expert. V3 ranks a group by the sum of its two best.",
            "the group-limited greedy gate of DeepSeek-V2",
        ),
        Misconception(
            "zero-filled",
            zero_filled,
            "It looks like closed groups filled with 0. A biased score may be negative, and then a closed expert wins: "
            "fill with minus infinity.",
            "the V2 gate in transformers, which fills 0.0 where no bias can be negative",
        ),
        Misconception(
            "without-bias",
            without_bias,
            "It looks like a choice by the raw scores. The bias takes part in choosing, and in nothing else.",
        ),
        Misconception(
            "without-groups",
            without_groups,
            "It looks like a top-k over all experts. Only experts of the kept groups may be chosen.",
        ),
        Misconception(
            "local-indices",
            local_indices,
            "It looks like indices that count within the kept groups. Count over all experts.",
        ),
    ),
    alternatives=(by_sorting_lists,),
    hints=(
        "View the scores as [T, groups, experts in a group] and find one number for each group.",
        "A closed expert must lose to every open one, whatever the sign of its score.",
        "Sum the two best of each group, keep the best groups, fill the rest with minus infinity, sort stably.",
    ),
)

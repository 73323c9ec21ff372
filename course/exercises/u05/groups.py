"""05.2: top-k among the experts of the best groups, and how many groups that meets (V2 report, 2.2.2; V3 report, 2.1.2)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EXAMPLE = [8.0, 0.0, 5.0, 4.0, 7.0, 1.0, 3.0, 3.0]
EDGES = [  # tokens, experts, groups, top groups, best, k, step of the scores, shift, factor
    (4, 6, 6, 3, 2, 2, 4, 0.0, 1),  # groups of a single expert
    (9, 16, 4, 2, 2, 4, 4, -9.0, 1),  # every score is negative
    (9, 16, 4, 2, 3, 8, 1024, -4.5, 1),  # as many experts as the open groups hold
    (7, 24, 4, 2, 1, 3, 1024, 0.0, 1),
    (7, 64, 32, 8, 2, 6, 2, 0.0, 1),  # past 16 entries a sort that is not stable moves ties
    (8, 12, 3, 1, 4, 4, 1024, 0.0, 1),
    (5, 12, 2, 2, 1, 3, 2, 0.0, 1),  # all groups open
    (6, 12, 4, 2, 2, 5, 4, -9.0, 2.0**40),  # negative, and larger than any number that one would think of
]


def inputs(rng, number):
    """Multiples of 1/1024 or coarser, times a power of two: sums are exact, so that ties are ties on every machine."""
    if number < 3:
        shift, best, k = [(0.0, 2, 3), (0.0, 1, 3), (-10.0, 2, 1)][number]
        scores_TE = torch.tensor([EXAMPLE]) + shift
        return {"scores_TE": scores_TE, "groups": 4, "top_groups": 2, "best": best, "k": k}
    if number < 3 + len(EDGES):
        T, E, groups, top_groups, best, k, step, shift, factor = EDGES[number - 3]
    else:
        groups = int(rng.choice([2, 3, 4, 8]))
        each, top_groups, best = int(rng.integers(2, 7)), int(rng.integers(1, groups)), int(rng.integers(1, 5))
        T, E, k = int(rng.integers(3, 24)), groups * each, int(rng.integers(1, min(top_groups * each, 8) + 1))
        step, shift, factor = int(rng.choice([2, 1024])), float(rng.choice([-9.0, -4.5, 0.0])), 1
    scores_TE = torch.tensor(factor * (rng.integers(0, 8 * step, size=(T, E)) / step + shift), dtype=torch.float32)
    return {"scores_TE": scores_TE, "groups": groups, "top_groups": top_groups, "best": best, "k": k}


def reference(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    sorted_TGe = scores_TE.view(T, groups, each).sort(descending=True).values
    ranks_TG = sorted_TGe[..., :best].sum(dim=-1)
    first_TM = ranks_TG.sort(descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.sort(descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def with_lists(scores_TE, groups, top_groups, best, k):
    each = scores_TE.shape[1] // groups
    rows, met = [], []
    for scores in scores_TE.tolist():
        rank = [sum(sorted(scores[g * each : (g + 1) * each])[::-1][:best]) for g in range(groups)]
        first = sorted(range(groups), key=lambda g: (-rank[g], g))[:top_groups]
        experts = [e for e in range(len(scores)) if e // each in first]
        rows.append(sorted(experts, key=lambda e: (-scores[e], e))[:k])
        met.append(len({e // each for e in rows[-1]}))
    return torch.tensor(rows), torch.tensor(met)


def single_best(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).amax(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def always_two(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).topk(min(2, each), dim=-1).values.sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def whole_group(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def zero_filled(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).topk(min(best, each), dim=-1).values.sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups).scatter(1, first_TM, 1.0)
    masked_TE = scores_TE * open_TG.repeat_interleave(each, dim=1)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def large_fill(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).topk(min(best, each), dim=-1).values.sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -1e9)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def without_groups(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    indices_TK = scores_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // (E // groups), 1)
    return indices_TK, met_TG.sum(dim=-1)


def local_indices(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    scores_TGe = scores_TE.view(T, groups, each)
    ranks_TG = scores_TGe.topk(min(best, each), dim=-1).values.sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups].sort(dim=-1).values
    kept_TMe = scores_TGe.gather(1, first_TM[..., None].expand(-1, -1, each))
    indices_TK = kept_TMe.flatten(1).sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def all_open_met(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).topk(min(best, each), dim=-1).values.sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices_TK, open_TG.sum(dim=-1)


def experts_met(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).topk(min(best, each), dim=-1).values.sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return indices_TK, torch.full((T,), k)


def every_other_expert(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, each, groups).topk(min(best, each), dim=1).values.sum(dim=1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat(1, each), -torch.inf)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK % groups, 1)
    return indices_TK, met_TG.sum(dim=-1)


def group_after_group(scores_TE, groups, top_groups, best, k):
    each = scores_TE.shape[1] // groups
    rows, met = [], []
    for scores in scores_TE.tolist():
        rank = [sum(sorted(scores[g * each : (g + 1) * each])[::-1][:best]) for g in range(groups)]
        first = sorted(range(groups), key=lambda g: (-rank[g], g))[:top_groups]
        row = [e for g in first for e in sorted(range(g * each, (g + 1) * each), key=lambda e: (-scores[e], e))]
        rows.append(row[:k])
        met.append(len({e // each for e in rows[-1]}))
    return torch.tensor(rows), torch.tensor(met)


def in_order_of_index(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).topk(min(best, each), dim=-1).values.sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, descending=True, stable=True).indices[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k].sort(dim=-1).values
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def ties_as_topk_likes(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).topk(min(best, each), dim=-1).values.sum(dim=-1)
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, ranks_TG.topk(top_groups, dim=-1).indices, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.topk(k, dim=-1).indices
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


def ties_to_the_higher_group(scores_TE, groups, top_groups, best, k):
    T, E = scores_TE.shape
    each = E // groups
    ranks_TG = scores_TE.view(T, groups, each).topk(min(best, each), dim=-1).values.sum(dim=-1)
    first_TM = ranks_TG.sort(dim=-1, stable=True).indices.flip(1)[:, :top_groups]
    open_TG = torch.zeros(T, groups, dtype=torch.bool).scatter(1, first_TM, True)
    masked_TE = scores_TE.masked_fill(~open_TG.repeat_interleave(each, dim=1), -torch.inf)
    indices_TK = masked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    met_TG = torch.zeros(T, groups, dtype=torch.int64).scatter(1, indices_TK // each, 1)
    return indices_TK, met_TG.sum(dim=-1)


EXERCISE = Exercise(
    id="05.2",
    unit="05",
    title="group-limited top-k",
    entry="group_limited_topk",
    points=15,
    minutes=20,
    difficulty=3,
    spine=True,
    inputs=inputs,
    cases=14,
    reference=reference,
    compare=same("indices", "met"),
    misconceptions=(
        Misconception(
            "single-best",
            single_best,
            "It looks like groups ranked by their single best expert, whatever `best` says. That is V2's rule: sum the `best` "
            "largest.",
            "vllm-project/vllm, pull request 13474: V3 was served with V2's way of ranking groups",
        ),
        Misconception(
            "always-two",
            always_two,
            "It looks like groups ranked by their two best experts, whatever `best` says. V3's code has a fixed 2; here it is an "
            "argument.",
            "NVIDIA/Megatron-LM, pull request 4667 makes the number a setting of its own",
        ),
        Misconception(
            "whole-group",
            whole_group,
            "It looks like groups ranked by the sum of all their scores. Only the `best` largest of a group count.",
        ),
        Misconception(
            "zero-filled",
            zero_filled,
            "It looks like closed groups filled with 0. Biased scores may be negative, and then a closed expert wins: fill with "
            "minus infinity.",
            "deepseek-ai/DeepSeek-V3, issue 741; sgl-project/sglang, pull request 3705",
        ),
        Misconception(
            "large-fill",
            large_fill,
            "It looks like closed groups filled with a large negative number. Whatever is large, a score may be larger: fill with "
            "minus infinity.",
        ),
        Misconception(
            "without-groups",
            without_groups,
            "It looks like a top-k over all experts. Only experts of the `top_groups` best groups may be chosen.",
        ),
        Misconception(
            "local-indices",
            local_indices,
            "It looks like indices that count within the open groups. Count over all experts.",
        ),
        Misconception(
            "all-open-met",
            all_open_met,
            "It looks like every open group counted as met. A token meets a group when one of its k experts lies in it.",
        ),
        Misconception(
            "experts-met",
            experts_met,
            "It looks like k groups met. Several of a token's experts may lie in one group, which then counts once.",
        ),
        Misconception(
            "every-other-expert",
            every_other_expert,
            "It looks like groups dealt out like cards, expert e in group e % groups. Groups are neighbours: expert e is in group "
            "e // (E // groups).",
        ),
        Misconception(
            "group-after-group",
            group_after_group,
            "It looks like the best group emptied before the next one is asked. The k best of all open groups are taken, wherever "
            "they lie.",
        ),
        Misconception(
            "in-order-of-index",
            in_order_of_index,
            "It looks like the chosen in order of their indices. The best score comes first.",
        ),
        Misconception(
            "topk-ties",
            ties_as_topk_likes,
            "It looks like torch.topk: right but for ties, which it breaks as it likes. Equal groups and equal experts go to the "
            "lower index.",
            "torch.topk's documentation promises no order among equal entries",
        ),
        Misconception(
            "ties-to-the-higher-group",
            ties_to_the_higher_group,
            "It looks like equal groups of which the higher opens. Of groups with equal sums the lower opens first.",
        ),
    ),
    alternatives=(with_lists,),
    hints=(
        "See the scores as [T, groups, experts in a group], and find one number for each group.",
        "A closed expert must lose to every open one, whatever the signs. And in which group does expert e stand?",
        "Sum the `best` largest of each group, sort the groups stably, fill closed experts with minus infinity, sort stably "
        "again; then "
        "count the different values of index // (E // groups) in each row.",
    ),
)

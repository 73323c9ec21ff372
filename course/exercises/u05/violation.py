"""05.5: how far the busiest expert, or device, is above the mean load (Wang et al. 2024, MaxVio; V2 report, 2.2.3)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # batches, layers, experts, devices, mean count, batches without pairs in a layer
    (1, 2, 4, 4, 6, 0),
    (4, 2, 6, 3, 5, 2),
    (3, 2, 6, 2, 8, 3),  # no pairs at all in the first layer
    (5, 3, 8, 1, 4, 1),  # one device: always balanced
    (2, 1, 24, 6, 3, 0),
]


def inputs(rng, number):
    if number < 2:
        counts_NLE = torch.tensor([[[8, 0, 0, 0]], [[0, 0, 8, 0]]])
        return {"counts_NLE": counts_NLE, "devices": [4, 2][number]}
    if number == 2:  # a single pair in a batch, and in a whole run
        counts_NLE = torch.zeros(3, 2, 6, dtype=torch.int64)
        counts_NLE[1, 0, rng.integers(6)] = 1
        counts_NLE[[0, 2], 1, rng.integers(6)] = 1
        return {"counts_NLE": counts_NLE, "devices": 3}
    if number < 3 + len(EDGES):
        N, L, E, devices, mean, empty = EDGES[number - 3]
    else:
        devices = int(rng.integers(1, 7))
        N, L, E = int(rng.integers(2, 7)), int(rng.integers(1, 5)), devices * int(rng.integers(1, 5))
        mean, empty = int(10 ** rng.uniform(0.3, 5)), int(rng.integers(0, 2))
    sizes = 1 + rng.integers(0, 4, size=(N, 1, 1))  # batches of several sizes
    liked = rng.dirichlet([2.0] * E, size=(1, L)) * E
    counts_NLE = torch.tensor(rng.poisson(mean * sizes * liked, size=(N, L, E)))
    counts_NLE[rng.permutation(N)[:empty], 0] = 0
    return {"counts_NLE": counts_NLE, "devices": devices}


def reference(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    counted_NL = loads_NLG.any(dim=-1)
    each_NL = loads_NLG.amax(dim=-1) * devices / loads_NLG.sum(dim=-1).clamp(min=1) - 1
    batch_L = (each_NL * counted_NL).sum(dim=0) / counted_NL.sum(dim=0).clamp(min=1)
    total_LG = loads_NLG.sum(dim=0)
    whole_L = total_LG.amax(dim=-1) * devices / total_LG.sum(dim=-1).clamp(min=1) - 1
    return batch_L.float(), (whole_L * counted_NL.any(dim=0)).float()


def with_lists(counts_NLE, devices):
    def violation(counts):
        each = len(counts) // devices
        loads = [sum(counts[d * each : (d + 1) * each]) for d in range(devices)]
        mean = sum(loads) / devices
        return (max(loads) - mean) / mean if mean else None

    batch, whole = [], []
    for layer in range(counts_NLE.shape[1]):
        found = [v for v in map(violation, counts_NLE[:, layer].tolist()) if v is not None]
        batch.append(sum(found) / len(found) if found else 0.0)
        whole.append(violation(counts_NLE[:, layer].sum(0).tolist()) or 0.0)
    return torch.tensor(batch), torch.tensor(whole)


def over_experts(counts_NLE, devices):
    E, loads_NLE = counts_NLE.shape[-1], counts_NLE.double()
    counted_NL = loads_NLE.sum(dim=-1) > 0
    each_NL = (loads_NLE.amax(dim=-1) * E / loads_NLE.sum(dim=-1).clamp(min=1) - 1) * counted_NL
    total_LE = loads_NLE.sum(dim=0)
    whole_L = (total_LE.amax(dim=-1) * E / total_LE.sum(dim=-1).clamp(min=1) - 1) * counted_NL.any(dim=0)
    return (each_NL.sum(dim=0) / counted_NL.sum(dim=0).clamp(min=1)).float(), whole_L.float()


def dealt_out(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, E // devices, devices).sum(dim=-2).double()
    counted_NL = loads_NLG.sum(dim=-1) > 0
    each_NL = (loads_NLG.amax(dim=-1) * devices / loads_NLG.sum(dim=-1).clamp(min=1) - 1) * counted_NL
    total_LG = loads_NLG.sum(dim=0)
    whole_L = (total_LG.amax(dim=-1) * devices / total_LG.sum(dim=-1).clamp(min=1) - 1) * counted_NL.any(dim=0)
    return (each_NL.sum(dim=0) / counted_NL.sum(dim=0).clamp(min=1)).float(), whole_L.float()


def busiest_expert_of_a_device(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).amax(dim=-1).double()
    counted_NL = loads_NLG.sum(dim=-1) > 0
    each_NL = (loads_NLG.amax(dim=-1) * devices / loads_NLG.sum(dim=-1).clamp(min=1) - 1) * counted_NL
    total_LG = loads_NLG.sum(dim=0)
    whole_L = (total_LG.amax(dim=-1) * devices / total_LG.sum(dim=-1).clamp(min=1) - 1) * counted_NL.any(dim=0)
    return (each_NL.sum(dim=0) / counted_NL.sum(dim=0).clamp(min=1)).float(), whole_L.float()


def without_minus_one(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    counted_NL = loads_NLG.sum(dim=-1) > 0
    each_NL = loads_NLG.amax(dim=-1) * devices / loads_NLG.sum(dim=-1).clamp(min=1)
    total_LG = loads_NLG.sum(dim=0)
    whole_L = total_LG.amax(dim=-1) * devices / total_LG.sum(dim=-1).clamp(min=1)
    return (each_NL.sum(dim=0) / counted_NL.sum(dim=0).clamp(min=1)).float(), whole_L.float()


def either_side(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    counted_NL = loads_NLG.sum(dim=-1) > 0
    share_NLG = loads_NLG * devices / loads_NLG.sum(dim=-1, keepdim=True).clamp(min=1)
    each_NL = (share_NLG - 1).abs().amax(dim=-1) * counted_NL
    total_LG = loads_NLG.sum(dim=0)
    share_LG = total_LG * devices / total_LG.sum(dim=-1, keepdim=True).clamp(min=1)
    whole_L = (share_LG - 1).abs().amax(dim=-1) * counted_NL.any(dim=0)
    return (each_NL.sum(dim=0) / counted_NL.sum(dim=0).clamp(min=1)).float(), whole_L.float()


def in_pairs(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    counted_NL = loads_NLG.sum(dim=-1) > 0
    each_NL = loads_NLG.amax(dim=-1) - loads_NLG.mean(dim=-1)
    total_LG = loads_NLG.sum(dim=0)
    whole_L = total_LG.amax(dim=-1) - total_LG.mean(dim=-1)
    return (each_NL.sum(dim=0) / counted_NL.sum(dim=0).clamp(min=1)).float(), whole_L.float()


def empty_as_balanced(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    counted_NL = loads_NLG.sum(dim=-1) > 0
    each_NL = (loads_NLG.amax(dim=-1) * devices / loads_NLG.sum(dim=-1).clamp(min=1) - 1) * counted_NL
    total_LG = loads_NLG.sum(dim=0)
    whole_L = (total_LG.amax(dim=-1) * devices / total_LG.sum(dim=-1).clamp(min=1) - 1) * counted_NL.any(dim=0)
    return each_NL.mean(dim=0).float(), whole_L.float()


def nan_without_pairs(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    each_NL = loads_NLG.amax(dim=-1) / loads_NLG.mean(dim=-1) - 1
    total_LG = loads_NLG.sum(dim=0)
    return each_NL.mean(dim=0).float(), (total_LG.amax(dim=-1) / total_LG.mean(dim=-1) - 1).float()


def weighted_by_size(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    pairs_NL = loads_NLG.sum(dim=-1)
    each_NL = (loads_NLG.amax(dim=-1) * devices / pairs_NL.clamp(min=1) - 1) * (pairs_NL > 0)
    total_LG = loads_NLG.sum(dim=0)
    whole_L = (total_LG.amax(dim=-1) * devices / total_LG.sum(dim=-1).clamp(min=1) - 1) * (pairs_NL > 0).any(dim=0)
    return ((each_NL * pairs_NL).sum(dim=0) / pairs_NL.sum(dim=0).clamp(min=1)).float(), whole_L.float()


def mean_twice(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    counted_NL = loads_NLG.sum(dim=-1) > 0
    each_NL = (loads_NLG.amax(dim=-1) * devices / loads_NLG.sum(dim=-1).clamp(min=1) - 1) * counted_NL
    batch_L = (each_NL.sum(dim=0) / counted_NL.sum(dim=0).clamp(min=1)).float()
    return batch_L, batch_L.clone()


def whole_twice(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    total_LG = counts_NLE.view(N, L, devices, E // devices).sum(dim=(0, 3)).double()
    whole_L = total_LG.amax(dim=-1) * devices / total_LG.sum(dim=-1).clamp(min=1) - 1
    whole_L = (whole_L * (total_LG.sum(dim=-1) > 0)).float()
    return whole_L, whole_L.clone()


def worst_batch(counts_NLE, devices):
    N, L, E = counts_NLE.shape
    loads_NLG = counts_NLE.view(N, L, devices, E // devices).sum(dim=-1).double()
    counted_NL = loads_NLG.sum(dim=-1) > 0
    each_NL = (loads_NLG.amax(dim=-1) * devices / loads_NLG.sum(dim=-1).clamp(min=1) - 1) * counted_NL
    total_LG = loads_NLG.sum(dim=0)
    whole_L = (total_LG.amax(dim=-1) * devices / total_LG.sum(dim=-1).clamp(min=1) - 1) * counted_NL.any(dim=0)
    return each_NL.amax(dim=0).float(), whole_L.float()


EXERCISE = Exercise(
    id="05.5",
    unit="05",
    title="max violation",
    entry="max_violation",
    points=5,
    minutes=12,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=10,
    reference=reference,
    compare=same("the mean of the batches", "the whole run"),
    misconceptions=(
        Misconception(
            "over-experts",
            over_experts,
            "It looks like loads of single experts. A device computes for all its experts: add their counts, then compare the "
            "devices.",
        ),
        Misconception(
            "dealt-out",
            dealt_out,
            "It looks like experts dealt out like cards. Device d holds neighbours: the first E / devices experts, then the "
            "next.",
        ),
        Misconception(
            "busiest-of-a-device",
            busiest_expert_of_a_device,
            "It looks like a device's busiest expert taken for its load. A device's load is the sum of its experts' counts.",
        ),
        Misconception(
            "without-minus-one",
            without_minus_one,
            "It looks like the largest load over the mean. The violation is one less, so that it is 0 at balance.",
        ),
        Misconception(
            "either-side",
            either_side,
            "It looks like the largest distance from the mean on either side. An idle device costs no time by itself: only loads "
            "above the mean count.",
            "MoonshotAI/Moonlight, issue 1: load_gap.abs().max()",
        ),
        Misconception(
            "in-pairs",
            in_pairs,
            "It looks like a difference in pairs. Divide by the mean load, so that batches of any size compare.",
        ),
        Misconception(
            "empty-as-balanced",
            empty_as_balanced,
            "It looks like an empty batch counted as a balanced one. A batch without pairs in a layer is left out of that layer's "
            "mean.",
        ),
        Misconception(
            "nan-without-pairs",
            nan_without_pairs,
            "It looks like 0 / 0 where a batch has no pairs. Leave it out; a layer that never has any counts as balanced, 0.",
        ),
        Misconception(
            "weighted-by-size",
            weighted_by_size,
            "It looks like a mean in which large batches count for more. Every batch that has pairs counts the same.",
        ),
        Misconception(
            "mean-twice",
            mean_twice,
            "It looks like the batches' mean given twice. For the whole run add the counts of all batches first, then look for the "
            "largest.",
        ),
        Misconception(
            "whole-twice",
            whole_twice,
            "It looks like the whole run's violation given twice. For the first value find each batch's own violation, then the "
            "mean.",
        ),
        Misconception(
            "worst-batch",
            worst_batch,
            "It looks like the worst batch. The first value is the mean over the batches.",
        ),
    ),
    alternatives=(with_lists,),
    hints=(
        "Three things happen: experts are added into devices, a largest is taken, batches are joined. In which order, for each "
        "of the two values?",
        "view(N, L, devices, E // devices).sum(-1) gives loads. Then largest over mean, minus one: batch by batch, or once on "
        "the sum of the batches.",
        "Where a batch's total is 0, give it weight 0 in the mean, and divide by the number of batches that have pairs (or by "
        "1).",
    ),
)

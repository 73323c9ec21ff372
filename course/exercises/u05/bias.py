"""05.4: the biases after a step, from the loads of all its parts (Wang et al. 2024, algorithm 1; V3 report, 2.1.2)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # parts, layers, experts, mean count, rate, experts out of order, factor of the biases
    (3, 2, 5, 6, 0.001, 0, 1),
    (1, 1, 2, 3, 0.5, 0, 1),
    (4, 3, 8, 10, 0.01, 2, 64),  # large biases, as after long training
    (2, 2, 6, 0, 0.01, 0, 1),  # no tokens
    (2, 2, 4, 50_000_000, 0.001, 0, 1),  # float32 cannot count so far
    (5, 2, 7, 3, 0.0, 1, 1),  # as in the last 500 billion tokens of V3
]


def inputs(rng, number):
    """In most layers some experts get exactly the mean of the summed counts."""
    if number == 0:
        counts_NLE = torch.tensor([[[6, 2, 0, 4]], [[0, 2, 6, 4]]])
        return {"bias_LE": torch.zeros(1, 4), "counts_NLE": counts_NLE, "rate": 0.125}
    if number == 1:  # means that are no whole numbers, and sums that 32 bits cannot hold
        counts_NLE = torch.tensor([[[5, 5, 6, 6], [900_000_000, 1, 2, 3]], [[0, 0, 0, 0], [900_000_000, 0, 0, 0]]])
        counts_NLE = torch.cat([counts_NLE, counts_NLE[1:]])
        return {"bias_LE": torch.tensor([[0.5, -0.25, 0.0, 2.0]]).repeat(2, 1), "counts_NLE": counts_NLE, "rate": 0.125}
    if number < 2 + len(EDGES):
        N, L, E, mean, rate, closed, factor = EDGES[number - 2]
    else:
        N, L, E = int(rng.integers(1, 7)), int(rng.integers(1, 5)), int(rng.integers(3, 14))
        mean, rate = int(10 ** rng.uniform(0.5, 6)), float(rng.choice([0.001, 0.01, 0.1]))
        closed, factor = int(rng.integers(0, 2)), 1
    bias_LE = torch.tensor(factor * rng.integers(-40, 41, size=(L, E)) / 64, dtype=torch.float32)
    counts_NLE = torch.tensor(rng.integers(0, 2 * mean + 1, size=(N, L, E)))
    for layer in range(L):
        order = rng.permutation(E)
        out, at_work = order[:closed].tolist(), order[closed:].tolist()
        bias_LE[layer, out] = -torch.inf
        counts_NLE[:, layer, out] = 0
        _balance_some(counts_NLE[:, layer], at_work, rng)
    return {"bias_LE": bias_LE, "counts_NLE": counts_NLE, "rate": rate}


def _balance_some(counts_NE, at_work, rng):
    """Shift counts so that the mean is a whole number and the first expert at work has it; the next is one off, and some get none."""
    totals = counts_NE[:, at_work].sum(0)
    if len(at_work) < 3 or not totals.sum():
        return
    mean = int(totals.sum()) // len(at_work) + 1
    wanted = totals.clone()
    wanted[0], wanted[1] = mean, mean + int(rng.choice([-1, 1]))
    rest = mean * len(at_work) - int(wanted[:2].sum())
    share = totals[2:] + 1
    share[: len(share) // 2] = 0  # at work and idle
    wanted[2:] = rest * share // share.sum()
    wanted[-1] += rest - wanted[2:].sum()
    for e, total in zip(at_work, wanted.tolist(), strict=True):
        cuts = sorted(rng.integers(0, total + 1, size=len(counts_NE) - 1).tolist())
        counts_NE[:, e] = torch.tensor([b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)])


def reference(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.sum(dim=0)
    at_work_LE = bias_LE > -torch.inf
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * at_work_LE.sum(dim=1, keepdim=True)
    return bias_LE + rate * gap_LE.sign()


def expert_by_expert(bias_LE, counts_NLE, rate):
    moved_LE = bias_LE.clone()
    for layer, biases in enumerate(bias_LE.tolist()):
        loads = [sum(part) for part in zip(*counts_NLE[:, layer].tolist(), strict=True)]
        at_work = [e for e, bias in enumerate(biases) if bias != float("-inf")]
        for e in at_work:
            if loads[e] * len(at_work) < sum(loads):
                moved_LE[layer, e] += rate
            elif loads[e] * len(at_work) > sum(loads):
                moved_LE[layer, e] -= rate
    return moved_LE


def flipped(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.sum(dim=0)
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    return bias_LE - rate * gap_LE.sign()


def proportional(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.sum(dim=0).double()
    mean_L1 = counts_LE.sum(dim=1, keepdim=True) / (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    return bias_LE + rate * ((mean_L1 - counts_LE) / mean_L1.clamp(min=1)).float()


def last_part(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE[-1]
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    return bias_LE + rate * gap_LE.sign()


def first_part(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE[0]
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    return bias_LE + rate * gap_LE.sign()


def a_step_each_part(bias_LE, counts_NLE, rate):
    at_work_L1 = (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    gap_NLE = counts_NLE.sum(dim=2, keepdim=True) - counts_NLE * at_work_L1
    return bias_LE + rate * gap_NLE.sign().sum(dim=0)


def mean_of_signs(bias_LE, counts_NLE, rate):
    at_work_L1 = (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    gap_NLE = counts_NLE.sum(dim=2, keepdim=True) - counts_NLE * at_work_L1
    return bias_LE + rate * gap_NLE.sign().float().mean(dim=0)


def majority_of_signs(bias_LE, counts_NLE, rate):
    at_work_L1 = (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    gap_NLE = counts_NLE.sum(dim=2, keepdim=True) - counts_NLE * at_work_L1
    return bias_LE + rate * gap_NLE.sign().sum(dim=0).sign()


def mean_over_all_layers(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.sum(dim=0)
    return bias_LE + rate * (counts_LE.sum() - counts_LE * (bias_LE > -torch.inf).sum()).sign()


def at_the_mean_falls(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.sum(dim=0)
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    return bias_LE + torch.where(gap_LE > 0, rate, -rate)


def at_the_mean_rises(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.sum(dim=0)
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    return bias_LE + torch.where(gap_LE < 0, -rate, rate)


def all_in_the_mean(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.sum(dim=0)
    return bias_LE + rate * (counts_LE.sum(dim=1, keepdim=True) - counts_LE * counts_LE.shape[1]).sign()


def float32_counts(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.float().sum(dim=0)
    mean_L1 = counts_LE.sum(dim=1, keepdim=True) / (bias_LE > -torch.inf).sum(dim=1, keepdim=True)
    return bias_LE + rate * (mean_L1 - counts_LE).sign()


def recentred(bias_LE, counts_NLE, rate):
    counts_LE, at_work_LE = counts_NLE.sum(dim=0), bias_LE > -torch.inf
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * at_work_LE.sum(dim=1, keepdim=True)
    step_LE = rate * gap_LE.sign() * at_work_LE
    return bias_LE + step_LE - step_LE.sum(dim=1, keepdim=True) / at_work_LE.sum(dim=1, keepdim=True)


def the_step_alone(bias_LE, counts_NLE, rate):
    counts_LE, at_work_LE = counts_NLE.sum(dim=0), bias_LE > -torch.inf
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * at_work_LE.sum(dim=1, keepdim=True)
    return rate * gap_LE.sign().float()


def floored_mean(bias_LE, counts_NLE, rate):
    counts_LE, at_work_LE = counts_NLE.sum(dim=0), bias_LE > -torch.inf
    mean_L1 = counts_LE.sum(dim=1, keepdim=True) // at_work_LE.sum(dim=1, keepdim=True)
    return bias_LE + rate * (mean_L1 - counts_LE).sign()


def clipped(bias_LE, counts_NLE, rate):
    counts_LE, at_work_LE = counts_NLE.sum(dim=0), bias_LE > -torch.inf
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * at_work_LE.sum(dim=1, keepdim=True)
    return torch.where(at_work_LE, (bias_LE + rate * gap_LE.sign()).clamp(-1, 1), bias_LE)


def busy_in_the_mean(bias_LE, counts_NLE, rate):
    counts_LE = counts_NLE.sum(dim=0)
    gap_LE = counts_LE.sum(dim=1, keepdim=True) - counts_LE * (counts_LE > 0).sum(dim=1, keepdim=True)
    return bias_LE + rate * gap_LE.sign()


EXERCISE = Exercise(
    id="05.4",
    unit="05",
    title="bias update",
    entry="update_biases",
    points=10,
    minutes=12,
    difficulty=2,
    spine=True,
    inputs=inputs,
    cases=11,
    reference=reference,
    compare=same("the biases"),
    misconceptions=(
        Misconception(
            "flipped",
            flipped,
            "It looks like the sign turned round: busy experts would be made busier. Too many tokens, and the bias goes down.",
        ),
        Misconception(
            "proportional",
            proportional,
            "It looks like a step in proportion to the gap. The sign of the gap counts, not how far it is: every step is `rate` or "
            "nothing.",
        ),
        Misconception(
            "last-part",
            last_part,
            "It looks like the counts of the last part alone. The load is that of the whole step: add the counts of all parts "
            "first.",
        ),
        Misconception(
            "first-part",
            first_part,
            "It looks like the counts of the first part alone, as if one rank decided for all. Add the counts of all parts "
            "first.",
        ),
        Misconception(
            "a-step-each-part",
            a_step_each_part,
            "It looks like a step for every part, N of them. Add the counts first; then there is one sign, and one step.",
        ),
        Misconception(
            "mean-of-signs",
            mean_of_signs,
            "It looks like the mean of the parts' signs. Add the counts first; then there is one sign, and the step is `rate` or "
            "nothing.",
        ),
        Misconception(
            "majority-of-signs",
            majority_of_signs,
            "It looks like a vote of the parts. A part far from balance weighs more than one that is near: add the counts, then "
            "take the sign.",
        ),
        Misconception(
            "mean-over-layers",
            mean_over_all_layers,
            "It looks like one mean for all layers. A layer is balanced within itself: each has its own mean.",
        ),
        Misconception(
            "at-the-mean-falls",
            at_the_mean_falls,
            "It looks like experts at the mean moving down. Neither above nor below: they stay.",
        ),
        Misconception(
            "at-the-mean-rises",
            at_the_mean_rises,
            "It looks like experts at the mean moving up. Neither above nor below: they stay.",
        ),
        Misconception(
            "all-in-the-mean",
            all_in_the_mean,
            "It looks like a mean over all E experts. One that is out of order cannot take its share: the mean is over those at "
            "work.",
        ),
        Misconception(
            "busy-in-the-mean",
            busy_in_the_mean,
            "It looks like a mean over the experts that received something. An idle expert at work is in the mean too: it is why "
            "there is a bias.",
        ),
        Misconception(
            "float32-counts",
            float32_counts,
            "It looks like counts in float32, which holds whole numbers only up to 16.8 million. Stay with integers and compare "
            "exactly.",
        ),
        Misconception(
            "floored-mean",
            floored_mean,
            "It looks like a mean rounded down to a whole number. Between 5 and 6 lies 5.5, and then nobody is at the mean: compare "
            "count times number with the total.",
        ),
        Misconception(
            "clipped",
            clipped,
            "It looks like biases held between -1 and 1. They may grow as far as balance asks for.",
        ),
        Misconception(
            "recentred",
            recentred,
            "It looks like steps shifted so that they sum to zero. That changes no choice, and is not asked for: each step is plus "
            "or minus "
            "`rate`, or nothing.",
            "pytorch/torchtitan, issue 1506: done there on purpose",
        ),
        Misconception(
            "the-step-alone",
            the_step_alone,
            "It looks like the step alone. Return the biases after it: the old ones plus the step.",
        ),
    ),
    alternatives=(expert_by_expert,),
    hints=(
        "When may the parts be added, and when may the sign be taken? One of the two comes first.",
        "Sum over the parts. For each layer: the total, and how many experts are at work. An expert is at the mean when its "
        "count times that "
        "number equals the total.",
        "The sign of (total - count * number at work), times rate, added to the bias. Minus infinity plus a number stays minus "
        "infinity.",
    ),
)

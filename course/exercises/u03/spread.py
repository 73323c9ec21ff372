"""03.6: do two arms differ by more than their seeds do? The rule by which this course believes a comparison."""

import math

import numpy as np
import torch

from course.checking.compare import kind
from course.checking.exercise import Exercise, Misconception

BOTH = {"difference": "the difference", "spread": "the spread", "error": "the standard error"}
EDGES = [  # losses of a, losses of b, paired
    ([3.50, 3.25, 3.375], [3.00, 3.125, 2.875], True),  # resolved
    ([3.5], [3.0], False),
    ([3.50, 3.25], [3.20, 2.95], False),  # more than the spread, less than two errors
    ([3.50, 3.40, 3.45], [3.0], False),
    ([3.0], [3.50, 3.40, 3.45], False),
    ([3.50, 3.25], [3.25, 3.00], False),  # differ by exactly the spread
    ([3.25, 3.00], [3.50, 3.25], True),
    ([3.50, math.nan, 3.375], [3.00, 3.125, 2.875], True),
    ([3.40, 3.41, 3.42, 3.43], [3.30, 3.50, 3.10], False),  # one arm spreads wide
    ([3.0, 3.01, 3.02], [3.04, 3.05, 3.30, math.inf], False),
    ([math.inf, 3.01, 3.02], [3.04, 3.05, 3.30], True),
    ([3.50, 3.25], [3.00, math.nan], False),
    ([math.nan], [3.0], False),
    ([3.0], [3.0, math.inf], False),
    ([3.00, 3.01, 3.02], [3.04, 3.05, 3.10], False),  # ranges apart, and within the spread
    ([3.10, 3.30, 3.20, 3.40], [3.04, 3.25, 3.13, 3.36], True),  # better in every pair, and within the spread
]


def inputs(rng, number):
    if number < len(EDGES):
        a, b, paired = EDGES[number]
    else:
        paired, n = bool(rng.integers(2)), int(rng.integers(2, 9))
        m = n if paired else int(rng.integers(2, 9))
        gap, spreads = rng.choice([-0.5, -0.1, 0.02, 0.1, 0.5]), 10 ** rng.uniform(-2, -0.5, size=2)
        shared = rng.normal(size=max(n, m))
        a = [3.5 + spreads[0] * (shared[i] + 0.3 * rng.normal()) for i in range(n)]
        b = [3.5 + gap + spreads[1] * (shared[i] + 0.3 * rng.normal()) for i in range(m)]
        if rng.uniform() < 0.15:
            b[-1] = math.nan
    return {
        "a_N": torch.tensor(a, dtype=torch.float64),
        "b_M": torch.tensor(b, dtype=torch.float64),
        "paired": paired,
    }


def compare(inputs, wanted, got):
    if not isinstance(got, list) or len(got) != 4:
        return "wanted four values: difference, spread, error, verdict"
    for name, w, g in zip(BOTH.values(), wanted, got, strict=False):
        if type(g) not in (int, float):
            return f"{name}: wanted a plain number, got {kind(g)}"
        if not (math.isclose(w, g, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(w) and math.isnan(g))):
            return f"{name}: wanted {w:.8g}, got {g:.8g}"
    return None if wanted[3] == got[3] else f"the verdict: wanted {wanted[3]!r}, got {str(got[3])[:40]!r}"


def reference(a_N, b_M, paired):
    a, b = a_N.numpy(), b_M.numpy()
    if not np.isfinite([*a, *b]).all():
        return math.nan, math.nan, math.nan, "not resolved"
    difference = float(b.mean() - a.mean())
    spread = float(max(x.max() - x.min() for x in (a, b)))
    if 1 in (len(a), len(b)):
        return difference, spread, math.nan, "not resolved"
    squared = (b - a).var(ddof=1) / len(a) if paired else a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)
    error = float(squared) ** 0.5
    if difference > spread:
        return difference, spread, error, "a"
    return difference, spread, error, "b" if -difference > spread else "not resolved"


def with_tensors(a_N, b_M, paired):
    nan = float("nan")
    if torch.cat([a_N, b_M]).isfinite().logical_not().any():
        return nan, nan, nan, "not resolved"
    difference = (b_M.mean() - a_N.mean()).item()
    spread = torch.stack([x.amax() - x.amin() for x in (a_N, b_M)]).amax().item()
    enough = a_N.numel() > 1 and b_M.numel() > 1
    error, verdict = nan, "not resolved"
    if enough:
        variance = (b_M - a_N).var() / a_N.numel() if paired else a_N.var() / a_N.numel() + b_M.var() / b_M.numel()
        error = variance.sqrt().item()
        if difference > spread:
            verdict = "a"
        elif -difference > spread:
            verdict = "b"
    return difference, spread, error, verdict


def the_smaller_spread(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), min(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def deviation_for_spread(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference = float(np.mean(b) - np.mean(a))
    if min(len(a), len(b)) < 2:
        return difference, 0.0, math.nan, "not resolved"
    spread, pairs = float(max(np.std(a, ddof=1), np.std(b, ddof=1))), [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def best_against_best(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = min(b) - min(a), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def drops_diverged_runs(a_N, b_M, paired):
    both = [(x, y) for x, y in zip(a_N.tolist(), b_M.tolist(), strict=False) if math.isfinite(x) and math.isfinite(y)]
    a = [x for x, _ in both] if paired else [x for x in a_N.tolist() if math.isfinite(x)]
    b = [y for _, y in both] if paired else [y for y in b_M.tolist() if math.isfinite(y)]
    if not a or not b:
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std([y - x for x, y in both], ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def pooled_spread(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(a + b) - min(a + b)
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def deviation_for_error(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) + np.var(b, ddof=1)) ** 0.5
    error = float(np.std(pairs, ddof=1)) if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def both_must_be_alone(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if len(a) == len(b) == 1:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    alone = min(len(a), len(b)) == 1
    error = math.nan if alone else float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def larger_is_better(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference > 0 else "a") if abs(difference) > spread else "not resolved"


def one_seed_decides(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    error = math.nan
    if min(len(a), len(b)) > 1:
        pairs = [y - x for x, y in zip(a, b, strict=False)]
        error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
        error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def never_paired(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def divided_by_n(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a) / len(a) + np.var(b) / len(b)) ** 0.5
    error = float(np.std(pairs)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) > spread else "not resolved"


def no_overlap(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, "b" if max(b) < min(a) else "a" if max(a) < min(b) else "not resolved"


def two_errors(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    sure = abs(difference) > 2 * error
    return difference, spread, error, ("b" if difference < 0 else "a") if sure else "not resolved"


def ties_decide(a_N, b_M, paired):
    a, b = a_N.tolist(), b_M.tolist()
    if not all(map(math.isfinite, a + b)):
        return math.nan, math.nan, math.nan, "not resolved"
    difference, spread = float(np.mean(b) - np.mean(a)), max(max(a) - min(a), max(b) - min(b))
    if min(len(a), len(b)) < 2:
        return difference, spread, math.nan, "not resolved"
    pairs = [y - x for x, y in zip(a, b, strict=False)]
    error = float(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)) ** 0.5
    error = float(np.std(pairs, ddof=1)) / len(a) ** 0.5 if paired else error
    return difference, spread, error, ("b" if difference < 0 else "a") if abs(difference) >= spread else "not resolved"


EXERCISE = Exercise(
    id="03.6",
    unit="03",
    title="seed spread",
    entry="compare_arms",
    points=10,
    minutes=15,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=20,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "smaller-spread",
            the_smaller_spread,
            "It looks like the smaller of the two spreads. The means must differ by more than the larger one.",
        ),
        Misconception(
            "deviation-for-spread",
            deviation_for_spread,
            "It looks like a standard deviation for the spread. The spread is the largest loss minus the smallest.",
        ),
        Misconception(
            "best-against-best",
            best_against_best,
            "It looks like the best run of each arm compared. The best of many seeds measures how many were tried: compare the means.",
        ),
        Misconception(
            "drops-diverged",
            drops_diverged_runs,
            "It looks like runs that diverged being left out. That chooses the seeds after seeing the results: the numbers are NaN, and "
            "the comparison is not resolved.",
        ),
        Misconception(
            "pooled-spread",
            pooled_spread,
            "It looks like the spread of all runs together. Each arm has its own, largest minus smallest; take the larger of the two.",
        ),
        Misconception(
            "deviation-for-error",
            deviation_for_error,
            "It looks like a standard deviation for the error. A mean of n runs is surer than one run: divide the variance by n before "
            "the root.",
        ),
        Misconception(
            "both-must-be-alone",
            both_must_be_alone,
            "It looks like one run against several taken for enough. As soon as one arm has a single run, nothing is resolved.",
        ),
        Misconception(
            "larger-is-better",
            larger_is_better,
            "It looks like the arm with the larger loss called better. A loss is better when it is smaller.",
        ),
        Misconception(
            "one-seed-decides",
            one_seed_decides,
            "It looks like a verdict from one seed. One run has no spread to be larger than: not resolved.",
        ),
        Misconception(
            "never-paired",
            never_paired,
            "It looks like pairs treated as strangers. When paired, take the differences b - a seed by seed, and the error of their mean.",
        ),
        Misconception(
            "divided-by-n",
            divided_by_n,
            "It looks like a variance divided by n. From a sample, divide by n - 1: the mean was fitted to the same numbers.",
            "numpy.var and numpy.std divide by n unless told ddof=1; torch.var and statistics.variance by n - 1",
        ),
        Misconception(
            "no-overlap",
            no_overlap,
            "It looks like a verdict by ranges that do not overlap. The rule compares the difference of the means with the larger spread.",
        ),
        Misconception(
            "two-errors",
            two_errors,
            "It looks like a verdict by two standard errors. The error is reported beside the verdict; the rule asks for more than the "
            "larger spread.",
        ),
        Misconception(
            "ties-decide",
            ties_decide,
            "It looks like a verdict from a difference that equals the spread. It must be larger.",
        ),
    ),
    alternatives=(with_tensors,),
    hints=(
        "Begin with the two cases in which nothing can be said: a run that is not finite, and an arm of one run.",
        "The rule needs the means and the ranges. The error is of the mean difference: of one list of differences when paired, of two "
        "independent means when not.",
        "paired: stdev(b - a) / sqrt(n). Not paired: sqrt(var(a) / n + var(b) / m), variances with n - 1. "
        "Verdict when abs(difference) is more than the larger range.",
    ),
)

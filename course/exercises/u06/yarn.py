"""06.7: YaRN: slowed speeds, and where its two factors go in DeepSeek's models (Peng et al. 2023, sections 3.2 and 3.4)."""

import math

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # turned, nope, theta, factor, original context, beta fast, beta slow, mscale, mscale_all_dim, truncate
    (64, 128, 10_000.0, 40.0, 4096, 32.0, 1.0, 1.0, 1.0, True),  # DeepSeek-V3
    (64, 128, 10_000.0, 40.0, 4096, 32.0, 1.0, 0.8, 0.3, True),
    (64, 0, 150_000.0, 32.0, 4096, 32.0, 1.0, 1.0, 0.0, False),  # gpt-oss, YaRN as published
    (16, 32, 10_000.0, 8.0, 128, 32.0, 1.0, 0.5, 0.707, True),  # begins before the first pair
    (12, 20, 100.0, 4.0, 131_072, 4000.0, 1.0, 1.0, 0.5, True),  # ends far behind the last
    (32, 16, 10_000.0, 1.0, 2048, 16.0, 2.0, 0.6, 0.9, False),  # nothing is stretched
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        case = (8, 8, 10.0, 16.0, 256, 16.0, 2.0, 1.0, 0.5, True)
    elif number <= len(EDGES):
        case = EDGES[number - 1]
    else:
        width, nope = 2 * int(rng.integers(6, 40)), int(rng.integers(0, 60))
        theta, factor = float(rng.choice([1e4, 1e5, 1e6])), float(rng.choice([2.0, 4.0, 10.0, 32.0]))
        betas = [(32.0, 1.0), (64.0, 2.0), (16.0, 0.5)][int(rng.integers(3))]
        mscale, all_dim = (float(m) for m in rng.choice([0.4, 0.707, 1.0, 1.3], size=2, replace=False))
        original = int(rng.choice([2048, 4096, 8192]))
        case = (width, nope, theta, factor, original, *betas, mscale, all_dim, bool(rng.integers(2)))
    names = ["rope_width", "nope_width", "theta", "factor", "original_context", "beta_fast", "beta_slow"]
    return dict(zip([*names, "mscale", "mscale_all_dim", "truncate"], case, strict=True))


def reference(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def pair_by_pair(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    def place(turns):
        """Which pair's wave is original_context / turns tokens long."""
        return math.log(original_context / turns / (2 * math.pi), theta) * rope_width / 2

    begin = math.floor(place(beta_fast)) if truncate else place(beta_fast)
    end = math.ceil(place(beta_slow)) if truncate else place(beta_slow)
    begin, end = max(0, begin), min(rope_width - 1, end)
    speeds = []
    for pair in range(rope_width // 2):
        speed = theta ** (-2 * pair / rope_width)
        share = 0.0 if pair <= begin else 1.0 if pair >= end else (pair - begin) / (end - begin)
        speeds.append(speed * (1 - share + share / factor))
    sharp = 1 + mscale_all_dim * math.log(factor) / 10
    scale = sharp * sharp / math.sqrt(rope_width + nope_width)
    return torch.tensor(speeds), (1 + mscale * math.log(factor) / 10) / sharp, scale


def all_slowed(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    scale = softmax**2 / (rope_width + nope_width) ** 0.5
    return theta ** (-torch.arange(P) / P) / factor, table / softmax, scale


def fast_ones_slowed(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    keep_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = keep_P * speeds_P + (1 - keep_P) * speeds_P / factor
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def blended_by_turns(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    speeds_P = theta ** (-torch.arange(P) / P)
    turns_P = original_context * speeds_P / (2 * math.pi)
    keep_P = ((turns_P - beta_slow) / (beta_fast - beta_slow)).clamp(0, 1)
    speeds_P = keep_P * speeds_P + (1 - keep_P) * speeds_P / factor
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def features_for_pairs(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        rope_width * math.log(original_context / (2 * math.pi * turns)) / math.log(theta)
        for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def radians_for_turns(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (P * math.log(original_context / turns) / math.log(theta) for turns in (beta_fast, beta_slow))
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def always_whole_pairs(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    first, last = max(math.floor(first), 0), min(math.ceil(last), rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def never_whole_pairs(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def both_rounded_down(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.floor(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def ends_not_limited(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def ends_at_the_last_pair(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, P - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first or 0.001)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def softmax_by_mscale(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, table**2 / (rope_width + nope_width) ** 0.5


def table_without_the_ratio(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table, softmax**2 / (rope_width + nope_width) ** 0.5


def table_by_all_dim(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    softmax = 0.1 * mscale_all_dim * math.log(factor) + 1
    return speeds_P, softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def not_squared(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax / (rope_width + nope_width) ** 0.5


def softmax_left_alone(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, 1 / (rope_width + nope_width) ** 0.5


def scale_of_the_turned(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / rope_width**0.5


def betas_exchanged(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_slow, beta_fast)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, table / softmax, softmax**2 / (rope_width + nope_width) ** 0.5


def table_inverted(
    rope_width, nope_width, theta, factor, original_context, beta_fast, beta_slow, mscale, mscale_all_dim, truncate
):
    P = rope_width // 2
    first, last = (
        P * math.log(original_context / (2 * math.pi * turns)) / math.log(theta) for turns in (beta_fast, beta_slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope_width - 1)
    speeds_P = theta ** (-torch.arange(P) / P)
    slow_P = ((torch.arange(P) - first) / (last - first)).clamp(0, 1)
    speeds_P = slow_P * speeds_P / factor + (1 - slow_P) * speeds_P
    table, softmax = (0.1 * weight * math.log(factor) + 1 for weight in (mscale, mscale_all_dim))
    return speeds_P, softmax / table, softmax**2 / (rope_width + nope_width) ** 0.5


EXERCISE = Exercise(
    id="06.7",
    unit="06",
    title="YaRN",
    entry="yarn",
    points=10,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=9,
    reference=reference,
    compare=same("speeds", "table_factor", "softmax_scale"),
    misconceptions=(
        Misconception(
            "all-slowed",
            all_slowed,
            "It looks like every pair slowed by the factor, as linear interpolation does. YaRN leaves the fast pairs alone.",
        ),
        Misconception(
            "fast-ones-slowed",
            fast_ones_slowed,
            "It looks like the fast pairs slowed and the slow ones kept. It is the slow ones, with high numbers, that are "
            "slowed further.",
        ),
        Misconception(
            "blended-by-turns",
            blended_by_turns,
            "It looks like a blend linear in the number of turns, as Llama 3.1 has it. YaRN's is linear in the pair's "
            "number.",
        ),
        Misconception(
            "features-for-pairs",
            features_for_pairs,
            "It looks like features counted where pairs are meant: 2P in place of P in front of the logarithms.",
        ),
        Misconception(
            "radians-for-turns",
            radians_for_turns,
            "It looks like betas taken as radians. They are whole turns, of 2 pi radians each.",
        ),
        Misconception(
            "always-whole-pairs",
            always_whole_pairs,
            "It looks like ends rounded to whole pairs whatever `truncate` says.",
        ),
        Misconception(
            "never-whole-pairs",
            never_whole_pairs,
            "It looks like ends that are never rounded. With `truncate`, first goes down to a whole pair and last goes up.",
        ),
        Misconception(
            "both-rounded-down",
            both_rounded_down,
            "It looks like both ends rounded down. The first goes down and the last up.",
        ),
        Misconception(
            "ends-not-limited",
            ends_not_limited,
            "It looks like ends outside of 0 and 2P - 1. They are limited before the blend is drawn between them.",
        ),
        Misconception(
            "ends-at-the-last-pair",
            ends_at_the_last_pair,
            "It looks like a blend that ends at pair P - 1 at the latest. The limit here is 2P - 1, as in the code of "
            "the models.",
        ),
        Misconception(
            "softmax-by-mscale",
            softmax_by_mscale,
            "It looks like a softmax scale from mscale. It comes from mscale_all_dim.",
            "NVIDIA/Megatron-LM issue 1429: mscale in place of mscale_all_dim",
        ),
        Misconception(
            "table-without-the-ratio",
            table_without_the_ratio,
            "It looks like m(mscale) on cosine and sine. It is divided by m(mscale_all_dim), so that equal ones cancel.",
        ),
        Misconception(
            "table-by-all-dim",
            table_by_all_dim,
            "It looks like m(mscale_all_dim) on cosine and sine. Their factor is the ratio m(mscale) / m(mscale_all_dim).",
            "kekzl/imp pull request 880: the rotation was inflated by m(mscale_all_dim)",
        ),
        Misconception(
            "not-squared",
            not_squared,
            "It looks like m(mscale_all_dim) once. A score is a product of query and key, and each would have carried it: "
            "it is squared.",
        ),
        Misconception(
            "softmax-left-alone",
            softmax_left_alone,
            "It looks like a softmax scale that YaRN did not touch. Where the ratio on the table is one, the sharpening "
            "is all in the scale: m(mscale_all_dim) squared.",
            "onnxruntime/mobius pull request 548: the factor on the softmax scale was missing",
        ),
        Misconception(
            "scale-of-the-turned",
            scale_of_the_turned,
            "It looks like a scale from the turned features alone. A key has nope_width + rope_width features.",
        ),
        Misconception(
            "betas-exchanged",
            betas_exchanged,
            "It looks like the two betas exchanged. The blend begins at the pair that turns beta_fast times: fast "
            "pairs keep their speed.",
        ),
        Misconception(
            "table-inverted",
            table_inverted,
            "It looks like the table factor upside down. It is m(mscale) / m(mscale_all_dim).",
        ),
    ),
    alternatives=(pair_by_pair,),
    hints=(
        "Three results that do not need each other: a blend of two speeds for each pair, a ratio, and a squared factor.",
        "first and last are pair numbers, P * log(context / (2 pi turns)) / log(theta); round, limit, draw a line between.",
        "slow = ((pairs - first) / (last - first)).clamp(0, 1): that share of speed / factor, the rest of the plain speed.",
    ),
)

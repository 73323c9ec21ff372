"""03.2: warm-up, plateau, cosine decay, floor: the shape of DeepSeek-V3's learning rate (V3 report, section 4.2)."""

import math

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

V3 = {
    "peak": 2.2e-4,
    "floor": 2.2e-5,
    "last": 7.3e-6,
    "warmup": 2000,
    "hold_until": 10_000_000_000_000,
    "decay": 4_300_000_000_000,
    "rest": 333_000_000_000,
}
BATCH = 15_360 * 4096  # tokens of one of V3's late steps
SMALL = {"peak": 1.0, "floor": 0.2, "last": 0.1, "warmup": 4, "hold_until": 100, "decay": 40, "rest": 30}
BY_HAND = [  # step, tokens read before it, what differs from SMALL
    *((1, 0, {}), (20, 100, {}), (21, 110, {}), (22, 120, {}), (26, 140, {}), (31, 169, {}), (32, 170, {})),
    (2, 500, {}),  # no run looks like this; but the warm-up goes first
    (4, 500, {}),
    (3, 130, {}),
    *((20, 99, {"decay": 0}), (20, 100, {"decay": 0}), (21, 120, {"decay": 0}), (21, 130, {"decay": 0})),
    *((1, 0, {"warmup": 0}), (1, 500, {"warmup": 0})),
]
EDGES = [  # step, tokens read before it: the published schedule, phase by phase
    (500, 499 * BATCH),
    (2000, 1999 * BATCH),
    (100_000, 9_900_000_000_000),
    (200_000, 12_150_000_000_000),  # half-way down
    (210_000, 13_225_000_000_000),  # three quarters
    (230_000, 14_400_000_000_000),
    (240_000, 14_633_000_000_000),  # the first of the last part
]


def inputs(rng, number):
    if number < len(BY_HAND):
        step, tokens, different = BY_HAND[number]
        return {"step": step, "tokens": tokens, **SMALL, **different}
    if number < len(BY_HAND) + len(EDGES):
        step, tokens = EDGES[number - len(BY_HAND)]
        return {"step": step, "tokens": tokens, **V3}
    peak, floor = float(rng.uniform(1e-4, 1e-2)), float(rng.uniform(0.05, 0.4))
    batch, warmup = int(rng.integers(100, 5000)), int(rng.choice([0, 10, 50]))
    hold, decay, rest = (int(rng.integers(60, 300)) * batch for _ in range(3))
    decay = 0 if number % 5 in (2, 3) and rng.uniform() < 0.3 else decay
    spans = [(1, max(warmup, 1)), (warmup + 1, hold // batch), (hold // batch, (hold + decay) // batch + 1)]
    spans += [((hold + decay) // batch + 1, (hold + decay + rest) // batch), ((hold + decay + rest) // batch + 1, 1200)]
    step = int(rng.integers(*sorted(spans[number % 5]), endpoint=True))
    return {
        "step": step,
        "tokens": (step - 1) * batch,
        "peak": peak,
        "floor": floor * peak,
        "last": 0.3 * floor * peak,
        "warmup": warmup,
        "hold_until": hold,
        "decay": decay,
        "rest": rest,
    }


def reference(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        progress = (tokens - hold_until) / decay
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor if tokens < hold_until + decay + rest else last


def with_clamps(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if warmup and step <= warmup:
        return peak / warmup * step
    if tokens - hold_until - decay >= rest:
        return last
    if tokens < hold_until:
        return peak
    progress = min((tokens - hold_until) / decay, 1.0) if decay else 1.0
    share = math.cos(math.pi / 2 * progress) ** 2
    return peak * share + floor * (1 - share)


def zero_at_the_first_step(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * (step - 1) / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        progress = (tokens - hold_until) / decay
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor if tokens < hold_until + decay + rest else last


def cosine_to_zero(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        progress = (tokens - hold_until) / decay
        return max(floor, peak * 0.5 * (1 + math.cos(math.pi * progress)))
    return floor if tokens < hold_until + decay + rest else last


def decay_from_the_start(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        progress = tokens / (hold_until + decay)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor if tokens < hold_until + decay + rest else last


def no_plateau(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until + decay:
        progress = tokens / (hold_until + decay)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor if tokens < hold_until + decay + rest else last


def straight_line(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        return peak + (floor - peak) * (tokens - hold_until) / decay
    return floor if tokens < hold_until + decay + rest else last


def floor_as_a_share(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        progress = (tokens - hold_until) / decay
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    return floor * peak if tokens < hold_until + decay + rest else last * peak


def decay_names_its_end(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < decay:
        progress = (tokens - hold_until) / (decay - hold_until)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor if tokens < rest else last


def never_the_last(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    progress = min(1.0, (tokens - hold_until) / decay) if decay else 1.0
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def floor_on_top(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        progress = (tokens - hold_until) / decay
        return floor + peak * 0.5 * (1 + math.cos(math.pi * progress))
    return floor if tokens < hold_until + decay + rest else last


def warm_up_only_at_the_start(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if tokens < hold_until:
        return peak * step / warmup if step <= warmup else peak
    if tokens < hold_until + decay:
        progress = (tokens - hold_until) / decay
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor if tokens < hold_until + decay + rest else last


def the_last_one_late(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        progress = (tokens - hold_until) / decay
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return floor if tokens <= hold_until + decay + rest else last


def full_cosine(step, tokens, peak, floor, last, warmup, hold_until, decay, rest):
    if step <= warmup:
        return peak * step / warmup
    if tokens < hold_until:
        return peak
    if tokens < hold_until + decay:
        return floor + (peak - floor) * math.cos(math.pi / 2 * (tokens - hold_until) / decay)
    return floor if tokens < hold_until + decay + rest else last


EXERCISE = Exercise(
    id="03.2",
    unit="03",
    title="learning rate schedule",
    entry="learning_rate",
    points=10,
    minutes=10,
    difficulty=2,
    spine=False,
    inputs=inputs,
    cases=29,
    reference=reference,
    compare=same("the rate"),
    misconceptions=(
        Misconception(
            "zero-at-the-first-step",
            zero_at_the_first_step,
            "It looks like a warm-up that begins at zero: the first step then teaches nothing. Steps count from 1, and step 1 has "
            "the rate peak / warmup.",
            "verl-project/verl issue 3674, google-research/bert issue 1293",
        ),
        Misconception(
            "cosine-to-zero",
            cosine_to_zero,
            "It looks like a cosine that falls towards zero and is cut off at the floor. It falls from peak to floor: only the "
            "difference of the two is multiplied.",
            "EleutherAI/gpt-neox pull request 1008",
        ),
        Misconception(
            "decay-from-the-start",
            decay_from_the_start,
            "It looks like progress measured from the first token of the run, so that the rate jumps where the plateau ends. The cosine "
            "begins at hold_until.",
            "decay that began before the warm-up had ended: huggingface/transformers pull request 4940",
        ),
        Misconception(
            "no-plateau",
            no_plateau,
            "It looks like a cosine right after the warm-up. The rate stays at its peak until hold_until tokens have been read.",
        ),
        Misconception(
            "straight-line",
            straight_line,
            "It looks like a straight line down. The decay is half a cosine: slow, fast, slow.",
        ),
        Misconception(
            "floor-as-a-share",
            floor_as_a_share,
            "It looks like floor and last multiplied by the peak. Here they are rates themselves; the course's own schedule takes a share.",
        ),
        Misconception(
            "decay-names-its-end",
            decay_names_its_end,
            "It looks like decay and rest read as places. They are lengths: the decay ends after hold_until + decay tokens, the "
            "floor after rest more.",
            "the opposite confusion, a length for an end: areal-project/AReaL pull request 1289",
        ),
        Misconception(
            "never-the-last",
            never_the_last,
            "It looks like a rate that stays at the floor. After rest tokens at the floor it drops to last.",
        ),
        Misconception(
            "floor-on-top",
            floor_on_top,
            "It looks like the floor put under a cosine of the full peak, so that the decay begins at peak + floor. Only the difference, "
            "peak - floor, is multiplied.",
        ),
        Misconception(
            "tokens-before-warm-up",
            warm_up_only_at_the_start,
            "It looks like tokens asked before steps. The warm-up goes first: while step <= warmup nothing else matters.",
        ),
        Misconception(
            "last-one-late",
            the_last_one_late,
            "It looks like a last rate that begins one token late. At exactly hold_until + decay + rest tokens the rate is last already.",
        ),
        Misconception(
            "quarter-of-a-cosine",
            full_cosine,
            "It looks like a quarter of a cosine's turn. Half a turn, 0.5 * (1 + cos(pi * progress)), goes from 1 to 0, flat at both ends.",
        ),
    ),
    alternatives=(with_clamps,),
    hints=(
        "Draw the curve, and write the five conditions in the order in which they come.",
        "progress is (tokens since hold_until) / decay; what must the curve be at progress 0, and at 1?",
        "In the decay: floor plus the share 0.5 * (1 + cos(pi * progress)) of the way from floor up to peak.",
    ),
)

"""02.2: rotary position embedding, both layouts of the pairs, any positions, part of a head (Su et al. 2021, 3.2 and 3.4)."""

import torch

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

EDGES = [  # batch, heads, positions, width of a head, features that turn, theta, layout
    (1, 1, [0, 1, 2], 4, 4, 100.0, "half"),
    (1, 2, [0, 1, 2, 3], 8, 8, 10_000.0, "interleaved"),
    (2, 1, [7], 6, 2, 10_000.0, "half"),
    (1, 3, [12, 3, 3, 40], 10, 6, 500_000.0, "interleaved"),
    (2, 2, [900, 901, 902], 12, 8, 10_000.0, "half"),
]


def inputs(rng, number):
    if number < len(EDGES):
        B, H, positions, C, rotary, theta, layout = EDGES[number]
    else:
        B, H, S, pairs = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 5), (2, 12), (2, 9)))
        rotary = 2 * pairs
        C, theta = rotary + 2 * int(rng.integers(0, 4)), float(rng.choice([1e3, 1e4, 5e5]))
        layout = ["half", "interleaved"][int(rng.integers(2))]
        positions = rng.integers(0, 1000, size=S).tolist()
    x_BHSC = torch.tensor(rng.normal(size=(B, H, len(positions), C)), dtype=torch.float32)
    positions_S = torch.tensor(positions, dtype=torch.int64)
    return {"x_BHSC": x_BHSC, "positions_S": positions_S, "theta": theta, "rotary": rotary, "layout": layout}


def reference(x_BHSC, positions_S, theta, rotary, layout):
    speeds_P = theta ** -(torch.arange(0, rotary, 2) / rotary)
    angles_SP = positions_S[:, None] * speeds_P
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning, rest = x_BHSC[..., :rotary], x_BHSC[..., rotary:]
    if layout == "half":
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=-1)


def as_complex_numbers(x_BHSC, positions_S, theta, rotary, layout):
    B, H, S = x_BHSC.shape[:3]
    pairs = rotary // 2
    turning = x_BHSC[..., :rotary].double()
    if layout == "half":
        turning = turning.reshape(B, H, S, 2, pairs).transpose(-1, -2)
    numbers = torch.view_as_complex(turning.reshape(B, H, S, pairs, 2).contiguous())
    angles_SP = torch.outer(positions_S.double(), theta ** -(torch.arange(pairs).double() / pairs))
    turned = torch.view_as_real(numbers * torch.polar(torch.ones_like(angles_SP), angles_SP))
    if layout == "half":
        turned = turned.transpose(-1, -2)
    return torch.cat([turned.reshape(B, H, S, rotary).float(), x_BHSC[..., rotary:]], dim=-1)


def pair_by_pair(x_BHSC, positions_S, theta, rotary, layout):
    y_BHSC = x_BHSC.clone()
    for row, position in enumerate(positions_S.tolist()):
        for i in range(rotary // 2):
            angle = torch.tensor(position * theta ** (-2 * i / rotary), dtype=torch.float64)
            one, two = (i, i + rotary // 2) if layout == "half" else (2 * i, 2 * i + 1)
            a, b = x_BHSC[:, :, row, one].double(), x_BHSC[:, :, row, two].double()
            y_BHSC[:, :, row, one] = (a * angle.cos() - b * angle.sin()).float()
            y_BHSC[:, :, row, two] = (b * angle.cos() + a * angle.sin()).float()
    return y_BHSC


def always_half(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    a, b = x_BHSC[..., :rotary].chunk(2, dim=-1)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def always_interleaved(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    a, b = x_BHSC[..., 0:rotary:2], x_BHSC[..., 1:rotary:2]
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turned = torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def layouts_exchanged(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    if layout == "interleaved":
        a, b = x_BHSC[..., :rotary].chunk(2, dim=-1)
        turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    else:
        a, b = x_BHSC[..., 0:rotary:2], x_BHSC[..., 1:rotary:2]
        turned = torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def halves_out(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning = x_BHSC[..., :rotary]
    a, b = turning.chunk(2, dim=-1) if layout == "half" else (turning[..., 0::2], turning[..., 1::2])
    turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def rows_for_positions(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = torch.arange(len(positions_S))[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning = x_BHSC[..., :rotary]
    if layout == "half":
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def counted_from_one(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = (positions_S[:, None] + 1) * theta ** -(torch.arange(0, rotary, 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning = x_BHSC[..., :rotary]
    if layout == "half":
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def speeds_of_the_whole_head(x_BHSC, positions_S, theta, rotary, layout):
    speeds_P = theta ** -(torch.arange(0, rotary, 2) / x_BHSC.shape[-1])
    angles_SP = positions_S[:, None] * speeds_P
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning = x_BHSC[..., :rotary]
    if layout == "half":
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def the_whole_head_turns(x_BHSC, positions_S, theta, rotary, layout):
    C = x_BHSC.shape[-1]
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, C, 2) / C)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    if layout == "half":
        a, b = x_BHSC.chunk(2, dim=-1)
        return torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    a, b = x_BHSC[..., 0::2], x_BHSC[..., 1::2]
    return torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)


def the_last_features_turn(x_BHSC, positions_S, theta, rotary, layout):
    still = x_BHSC.shape[-1] - rotary
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning = x_BHSC[..., still:]
    if layout == "half":
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([x_BHSC[..., :still], turned], dim=-1)


def turned_backwards(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning = x_BHSC[..., :rotary]
    if layout == "half":
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos_SP + b * sin_SP, b * cos_SP - a * sin_SP], dim=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([a * cos_SP + b * sin_SP, b * cos_SP - a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def second_reads_the_new_first(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    y_BHSC = x_BHSC.clone()
    pairs = rotary // 2
    one = slice(0, pairs) if layout == "half" else slice(0, rotary, 2)
    two = slice(pairs, rotary) if layout == "half" else slice(1, rotary, 2)
    y_BHSC[..., one] = y_BHSC[..., one] * cos_SP - y_BHSC[..., two] * sin_SP
    y_BHSC[..., two] = y_BHSC[..., two] * cos_SP + y_BHSC[..., one] * sin_SP
    return y_BHSC


def exponent_i(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(rotary // 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning = x_BHSC[..., :rotary]
    if layout == "half":
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)
    return torch.cat([turned, x_BHSC[..., rotary:]], dim=-1)


def the_rest_is_lost(x_BHSC, positions_S, theta, rotary, layout):
    angles_SP = positions_S[:, None] * theta ** -(torch.arange(0, rotary, 2) / rotary)
    cos_SP, sin_SP = angles_SP.cos(), angles_SP.sin()
    turning = x_BHSC[..., :rotary]
    if layout == "half":
        a, b = turning.chunk(2, dim=-1)
        return torch.cat([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1)
    a, b = turning[..., 0::2], turning[..., 1::2]
    return torch.stack([a * cos_SP - b * sin_SP, b * cos_SP + a * sin_SP], dim=-1).flatten(-2)


EXERCISE = Exercise(
    id="02.2",
    unit="02",
    title="RoPE",
    entry="rope",
    points=15,
    minutes=20,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=7,
    reference=reference,
    compare=same("the result", rtol=1e-4),  # a float32 angle of some hundred radians is off by 1e-5
    misconceptions=(
        Misconception(
            "always-half",
            always_half,
            'It looks like halves in both layouts. With layout="interleaved" feature 2i turns with its neighbour 2i + 1.',
            "jzhang38/TinyLlama, issue 24: the other layout gave gibberish; huggingface/nanotron, pull request 427",
        ),
        Misconception(
            "always-interleaved",
            always_interleaved,
            'It looks like neighbours in both layouts. With layout="half" feature i turns with feature i + rotary / 2.',
        ),
        Misconception(
            "layouts-exchanged",
            layouts_exchanged,
            'It looks like the two layouts in each other\'s place. "half": i with i + rotary / 2; "interleaved": 2i with 2i + 1.',
        ),
        Misconception(
            "halves-out",
            halves_out,
            "It looks like neighbours turned rightly and then put down as two halves. Every feature stays in its place: "
            "stack the pairs and flatten.",
            "DeepSeek-V3 in transformers does this on purpose: products of queries and keys are the same, the vectors are not",
        ),
        Misconception(
            "rows-for-positions",
            rows_for_positions,
            "It looks like angles from the row numbers 0, 1, 2, ... Row s stands at position positions_S[s], wherever that is.",
            "RobertCsordas/moeut, pull request 6: with a cache, every new token was turned as if it stood at position 0",
        ),
        Misconception(
            "counted-from-one",
            counted_from_one,
            "It looks like positions counted from one. The angle is position times speed: position 0 does not turn.",
        ),
        Misconception(
            "speeds-of-the-whole-head",
            speeds_of_the_whole_head,
            "It looks like speeds made from the width of the whole head. The exponent is -2i / rotary: the pairs that turn "
            "share the whole range of speeds.",
            "pie-project/pie, pull request 603: right at position 0, and worse with every token",
        ),
        Misconception(
            "whole-head",
            the_whole_head_turns,
            "It looks like the whole head turning. Only the first `rotary` features turn; the others pass as they are.",
            "AI-Hypercomputer/maxtext, pull request 4615: the share of features that turn was dropped in silence",
        ),
        Misconception(
            "last-features",
            the_last_features_turn,
            "It looks like the last `rotary` features turning. Here it is the first ones; DeepSeek's heads have them last.",
        ),
        Misconception(
            "backwards",
            turned_backwards,
            "It looks like turning the other way round: the first of a pair becomes a cos - b sin. Scores would not show it, since "
            "queries and keys would both turn backwards.",
        ),
        Misconception(
            "new-first",
            second_reads_the_new_first,
            "It looks like the second of each pair computed from the first one's new value. Both need the old values.",
        ),
        Misconception(
            "exponent-i",
            exponent_i,
            "It looks like theta to the power of -i / rotary. Pair i has the exponent -2i / rotary: there are rotary / 2 pairs.",
        ),
        Misconception(
            "rest-lost",
            the_rest_is_lost,
            "It looks like only the features that turn came back. The others follow behind them, unchanged.",
        ),
    ),
    alternatives=(as_complex_numbers, pair_by_pair),
    hints=(
        "Take one pair (a, b) at one position: an angle, a cosine, a sine, two new numbers. Which two features are a pair?",
        "angles: positions_S[:, None] times theta ** (-2i / rotary), shape [S, P]. It broadcasts over batch and heads.",
        "half: chunk, turn, torch.cat. interleaved: slices 0::2 and 1::2, turn, torch.stack(dim=-1), flatten(-2). Then add the rest.",
    ),
)

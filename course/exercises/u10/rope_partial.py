"""10.4: rotary embedding of the last features of each head, at given positions, forward and backward (Su et al. 2021)."""

import torch
import triton
import triton.language as tl

from course.checking.exercise import Exercise, Misconception
from course.exercises.u10._rounded import rounded_once

BF16, FP32 = torch.bfloat16, torch.float32
EDGES = [  # B, S, H, D, pairs, rows of the tables, dtype, backward, factor on the tables
    (2, 3, 2, 12, 4, 20, FP32, False, 1.0),  # two sequences with positions of their own
    (2, 3, 2, 12, 4, 20, FP32, True, 1.25),  # the tables are scaled, as YaRN's: a turn back does not undo it
    (1, 4, 3, 24, 5, 300, BF16, False, 1.0),
    (1, 4, 3, 24, 5, 300, BF16, True, 0.75),
    (1, 2, 5, 6, 3, 9, FP32, False, 1.0),  # every feature is turned
    (2, 5, 1, 7, 1, 40, FP32, True, 1.0),  # one pair, and an odd number of features
    (1, 0, 2, 8, 2, 5, FP32, False, 1.0),  # no positions
    (1, 5, 2, 96, 32, 64, BF16, False, 1.0),
]


def inputs(rng, number):
    if number == 0:  # the example of the text
        x = torch.tensor([[[[9.0, 1.0, 2.0]], [[8.0, 3.0, 5.0]]]])
        cos, sin = torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[0.0], [1.0], [0.0]])
        return {
            "x_BSHD": x,
            "positions_BS": torch.tensor([[1, 2]]),
            "cos_TP": cos,
            "sin_TP": sin,
            "backward": False,
        }
    if number <= len(EDGES):
        B, S, H, D, P, T, dtype, backward, factor = EDGES[number - 1]
    else:
        B, S, H, P = (int(rng.integers(1, top)) for top in (4, 5, 4, 9))
        D, T = 2 * P + int(rng.integers(1, 20)), int(rng.integers(20, 200))
        dtype, backward = (BF16, FP32)[int(rng.integers(2))], bool(rng.integers(2))
        factor = float(rng.choice([1.0, 1.25]))
    x_BSHD = torch.tensor(rng.normal(size=(B, S, H, D))).to(dtype)
    positions_BS = torch.tensor(rng.integers(1, T, size=(B, S)))
    positions_BS[:1, :1] = T - 1  # behind its row there is nothing
    angles_TP = torch.arange(T).double()[:, None] * 0.5 ** torch.arange(P)
    cos_TP, sin_TP = (factor * angles_TP.cos()).float(), (factor * angles_TP.sin()).float()
    return {
        "x_BSHD": x_BSHD,
        "positions_BS": positions_BS,
        "cos_TP": cos_TP,
        "sin_TP": sin_TP,
        "backward": backward,
    }


def reference(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    P = cos_TP.shape[1]
    cos_BS1P, sin_BS1P = cos_TP.double()[positions_BS][:, :, None], sin_TP.double()[positions_BS][:, :, None]
    sin_BS1P = -sin_BS1P if backward else sin_BS1P
    stays_BSHO, turns_BSHr = x_BSHD.double().split([x_BSHD.shape[-1] - 2 * P, 2 * P], dim=-1)
    a_BSHP, b_BSHP = turns_BSHr.unflatten(-1, (P, 2)).unbind(-1)
    turned = torch.stack([a_BSHP * cos_BS1P - b_BSHP * sin_BS1P, b_BSHP * cos_BS1P + a_BSHP * sin_BS1P], dim=-1)
    return torch.cat([stays_BSHO, turned.flatten(-2)], dim=-1).to(x_BSHD.dtype)


@triton.jit
def _token(x, positions, cos, sin, out, H, D, P, backward, KEPT: tl.constexpr, PAIRS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(positions + token)
    k, p = tl.arange(0, KEPT), tl.arange(0, PAIRS)
    cosine = tl.load(cos + row * P + p, mask=p < P)
    sine = tl.load(sin + row * P + p, mask=p < P)
    if backward:
        sine = -sine
    stays = D - 2 * P
    for h in range(H):
        head = (token * H + h) * D
        tl.store(out + head + k, tl.load(x + head + k, mask=k < stays), mask=k < stays)
        first = head + stays + 2 * p
        a = tl.load(x + first, mask=p < P).to(tl.float32)
        b = tl.load(x + first + 1, mask=p < P).to(tl.float32)
        tl.store(out + first, (a * cosine - b * sine).to(out.dtype.element_ty), mask=p < P)
        tl.store(out + first + 1, (b * cosine + a * sine).to(out.dtype.element_ty), mask=p < P)


def a_token_at_a_time(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), (_, P) = x_BSHD.shape, cos_TP.shape
    out_BSHD = torch.empty_like(x_BSHD)
    tensors = x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD
    KEPT, PAIRS = triton.next_power_of_2(D), triton.next_power_of_2(P)
    _token[(B * S,)](*tensors, H, D, P, backward, KEPT=KEPT, PAIRS=PAIRS)
    return out_BSHD


@triton.jit
def _partner(x, positions, cos, sin, out, H, D, P, backward, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + place)
    h, d = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside, turns = (h < H) & (d < D), (d >= D - 2 * P) & (d < D)
    feature = d - (D - 2 * P)
    second = feature % 2 == 1
    here = (place * H + h) * D + d
    own = tl.load(x + here, mask=inside).to(tl.float32)
    other = tl.load(x + tl.where(second, here - 1, here + 1), mask=inside & turns).to(tl.float32)
    cosine = tl.load(cos + position * P + feature // 2, mask=turns).to(tl.float32)
    sine = tl.load(sin + position * P + feature // 2, mask=turns).to(tl.float32)
    if backward:
        sine = -sine
    turned = own * cosine + tl.where(second, other, -other) * sine
    tl.store(out + here, tl.where(turns, turned, own).to(out.dtype.element_ty), mask=inside)


def each_feature_with_its_partner(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    B, S, H, D = x_BSHD.shape
    out_BSHD = torch.empty_like(x_BSHD)
    tensors = x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD
    P, HEADS, BLOCK = cos_TP.shape[1], triton.next_power_of_2(H), triton.next_power_of_2(D)
    _partner[(B * S,)](*tensors, H, D, P, backward, HEADS=HEADS, BLOCK=BLOCK)
    return out_BSHD


@triton.jit
def _faulty(
    x, positions, cos, sin, out, S, H, P, D, start, backward,
    FAULT: tl.constexpr, KEPT: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0)
    p, d = tl.arange(0, PAIRS), tl.arange(0, KEPT)
    at = tl.load(positions + place)
    if FAULT == 1:  # 1: places for positions
        at = (place % S).to(tl.int64)
    if FAULT == 2:  # 2: the positions of the first sequence
        at = tl.load(positions + place % S)
    cosine = tl.load(cos + at * P + p, mask=p < P, other=0.0)
    sine = tl.load(sin + at * P + p, mask=p < P, other=0.0)
    if FAULT == 3:  # 3: the other direction
        sine = -sine
    if FAULT != 4:  # 4: backward is not looked at
        sine = tl.where(backward, -sine, sine)
    if FAULT == 5:  # 5: undone, not transposed
        size = tl.where(backward & (p < P), cosine * cosine + sine * sine, 1.0)
        cosine, sine = cosine / size, sine / size
    for h in range(H):
        first = (place * H + h) * D
        kept = tl.load(x + first + d, mask=d < D, other=0.0).to(tl.float32)
        if FAULT == 6:  # 6: features that stay are lost
            kept = kept * 0.0
        turned = (d >= start) & (d < start + 2 * P)
        tl.store(out + first + d, kept.to(out.dtype.element_ty), mask=(d < D) & ~turned)
        left, right = first + start + 2 * p, first + start + 2 * p + 1
        if FAULT == 7:  # 7: pairs of the halves
            left, right = first + start + p, first + start + P + p
        a = tl.load(x + left, mask=p < P, other=0.0).to(tl.float32)
        b = tl.load(x + right, mask=p < P, other=0.0).to(tl.float32)
        if FAULT == 8:  # 8: read in pairs, written in halves
            left, right = first + start + p, first + start + P + p
        turned_a, turned_b = a * cosine - b * sine, b * cosine + a * sine
        if FAULT == 9:  # 9: the first of a pair is overwritten before the second needs it
            turned_b = b * cosine + turned_a * sine
        if FAULT == 10:  # 10: cosine and sine in the narrow dtype
            narrow_cosine = cosine.to(out.dtype.element_ty).to(tl.float32)
            narrow_sine = sine.to(out.dtype.element_ty).to(tl.float32)
            turned_a, turned_b = a * narrow_cosine - b * narrow_sine, b * narrow_cosine + a * narrow_sine
        tl.store(out + left, turned_a.to(out.dtype.element_ty), mask=p < P)
        tl.store(out + right, turned_b.to(out.dtype.element_ty), mask=p < P)


def places_for_positions(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=1, **blocks)
    return out_BSHD


def positions_of_the_first_sequence(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=2, **blocks)
    return out_BSHD


def sign_of_the_sine(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=3, **blocks)
    return out_BSHD


def backward_not_looked_at(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=4, **blocks)
    return out_BSHD


def undone(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=5, **blocks)
    return out_BSHD


def rest_lost(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=6, **blocks)
    return out_BSHD


def first_features(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, 0, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=0, **blocks)
    return out_BSHD


def pairs_of_halves(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=7, **blocks)
    return out_BSHD


def written_in_halves(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=8, **blocks)
    return out_BSHD


def overwritten(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=9, **blocks)
    return out_BSHD


def tables_rounded(x_BSHD, positions_BS, cos_TP, sin_TP, backward):
    (B, S, H, D), P = x_BSHD.shape, cos_TP.shape[1]
    out_BSHD = torch.empty_like(x_BSHD)
    sizes = S, H, P, D, D - 2 * P, backward
    blocks = {"KEPT": triton.next_power_of_2(D), "PAIRS": triton.next_power_of_2(P)}
    _faulty[(B * S,)](x_BSHD, positions_BS, cos_TP, sin_TP, out_BSHD, *sizes, FAULT=10, **blocks)
    return out_BSHD


EXERCISE = Exercise(
    id="10.4",
    unit="10",
    title="rotary embedding of a part of each head",
    entry="rope_partial",
    points=10,
    minutes=30,
    difficulty=3,
    spine=False,
    inputs=inputs,
    cases=12,
    reference=reference,
    compare=rounded_once("out"),
    misconceptions=(
        Misconception(
            "places-for-positions",
            places_for_positions,
            "It looks like position s for the s-th token. The position is what positions_BS says, and names a row of the tables.",
        ),
        Misconception(
            "positions-of-first-sequence",
            positions_of_the_first_sequence,
            "It looks like the positions of sequence 0 for all sequences. Each sequence has a row of its own in positions_BS.",
        ),
        Misconception(
            "sign-of-sine",
            sign_of_the_sine,
            "It looks like a turn in the other direction. Forward, (a, b) becomes (a cos - b sin, b cos + a sin).",
        ),
        Misconception(
            "backward-not-looked-at",
            backward_not_looked_at,
            "It looks like the forward turn where the gradient was asked for. The gradient is turned with -sin.",
        ),
        Misconception(
            "undone",
            undone,
            "It looks like the inverse of the turn. The gradient needs its transpose: -sin, and no division, also where tables "
            "are scaled and cos^2 + sin^2 is not 1.",
        ),
        Misconception(
            "rest-lost",
            rest_lost,
            "It looks like zeros where features stay. They are copied from x as they are.",
        ),
        Misconception(
            "first-features",
            first_features,
            "It looks like the first 2P features turned. The last 2P turn, and the first D - 2P stay.",
        ),
        Misconception(
            "pairs-of-halves",
            pairs_of_halves,
            "It looks like pairs of feature i and feature P + i. Here neighbours are a pair: 0 and 1, 2 and 3.",
            seen="vllm-project/vllm #49290",
        ),
        Misconception(
            "written-in-halves",
            written_in_halves,
            "It looks like pairs read side by side and written as two halves, as transformers does for DeepSeek. Here a feature "
            "stays at its place.",
        ),
        Misconception(
            "overwritten",
            overwritten,
            "It looks like the new a used for the new b. Both come from the pair as it was.",
        ),
        Misconception(
            "tables-rounded",
            tables_rounded,
            "It looks like cosine and sine rounded to the dtype of x. They stay float32; only the result is rounded.",
        ),
    ),
    alternatives=(a_token_at_a_time, each_feature_with_its_partner),
    hints=(
        "A token's heads share their cosine and sine. What does a program load once, if it serves all heads of one token?",
        "Token number t of all B * S has its position at positions + t, and row `position` of the tables begins at "
        "position * P. The heads of the token begin at t * H * D.",
        "Pair p of a head lies at D - 2P + 2p and one further. Negate the sine where backward is set, and copy the first D - 2P "
        "features.",
    ),
    kernel=True,
)
